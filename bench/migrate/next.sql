-- What the next version of the tenants' schema might bring; two conversations of one title are in its way.

ALTER TABLE conversations ADD COLUMN mood TEXT NOT NULL DEFAULT 'calm';
CREATE UNIQUE INDEX one_title ON conversations (title);
