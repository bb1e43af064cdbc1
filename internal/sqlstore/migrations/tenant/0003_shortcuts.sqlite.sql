-- Projects of others that this account is a member of, as they were when last looked at: so that a list of projects is
-- read here alone. Whether the account still is a member, the master database says.
CREATE TABLE shortcuts (
    n                INTEGER PRIMARY KEY AUTOINCREMENT,
    id               TEXT NOT NULL UNIQUE,
    role             TEXT NOT NULL,
    name             TEXT NOT NULL,
    name_folded      TEXT NOT NULL,
    description      TEXT NOT NULL,
    instructions     TEXT NOT NULL,
    status           TEXT NOT NULL,
    priority         TEXT NOT NULL,
    color            TEXT NOT NULL,
    icon             TEXT NOT NULL,
    tags             TEXT NOT NULL,
    provider         TEXT NOT NULL,
    model            TEXT NOT NULL,
    settings         TEXT NOT NULL,
    deadline         BIGINT,
    owner_id         TEXT NOT NULL,
    owner_name       TEXT NOT NULL,
    conversations    BIGINT NOT NULL,
    version          BIGINT NOT NULL,
    created_at       BIGINT NOT NULL,
    updated_at       BIGINT NOT NULL
);
