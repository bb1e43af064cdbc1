-- Until when more may be due than what is due first.
ALTER TABLE hints ADD COLUMN last_at BIGINT NOT NULL DEFAULT 0;
