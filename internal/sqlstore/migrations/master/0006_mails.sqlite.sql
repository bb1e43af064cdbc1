-- Mails that wait to be sent. What they say, and to whom, is sealed, and gone (NULL) once that is settled; the name, a keyed
-- hash, stays until due_at, so that the same notice is sent once.
CREATE TABLE mails (
    name             TEXT NOT NULL PRIMARY KEY,
    sealed           BLOB,
    cause_id         TEXT NOT NULL,
    attempts         BIGINT NOT NULL,
    due_at           BIGINT NOT NULL,
    created_at       BIGINT NOT NULL
);
CREATE INDEX mails_waiting ON mails (due_at) WHERE sealed IS NOT NULL;
CREATE INDEX mails_settled ON mails (due_at) WHERE sealed IS NULL;
CREATE INDEX mails_by_cause ON mails (cause_id, created_at) WHERE cause_id <> '';
