-- The master database: who may sign in, and where each tenant's data lives. Nothing that a user wrote.
-- Times are microseconds since 1970 in UTC; JSON is text; flags are 0 or 1.

CREATE TABLE accounts (
    id               TEXT NOT NULL PRIMARY KEY,
    email            TEXT NOT NULL,
    email_folded     TEXT NOT NULL UNIQUE,
    password_hash    TEXT NOT NULL,
    name             TEXT NOT NULL,
    role             TEXT NOT NULL,
    state            TEXT NOT NULL,
    settings         TEXT NOT NULL,
    tenant_id        TEXT NOT NULL UNIQUE,
    version          BIGINT NOT NULL,
    created_at       BIGINT NOT NULL,
    updated_at       BIGINT NOT NULL
);

CREATE TABLE tenants (
    id               TEXT NOT NULL PRIMARY KEY,
    account_id       TEXT NOT NULL REFERENCES accounts (id),
    kind             TEXT NOT NULL,
    host             TEXT NOT NULL,
    wrapped_key      BLOB,
    state            TEXT NOT NULL,
    created_at       BIGINT NOT NULL
);

-- A session is a family of refresh tokens, of which one is current. The one before it is honoured for a few seconds,
-- and answers with the same successor, which is kept sealed for that long.
CREATE TABLE sessions (
    id               TEXT NOT NULL PRIMARY KEY,
    account_id       TEXT NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    current_hash     BLOB NOT NULL UNIQUE,
    previous_hash    BLOB UNIQUE,
    previous_until   BIGINT NOT NULL,
    successor        BLOB,
    generation       BIGINT NOT NULL,
    device           TEXT NOT NULL,
    address          TEXT NOT NULL,
    created_at       BIGINT NOT NULL,
    last_used_at     BIGINT NOT NULL,
    idle_until       BIGINT NOT NULL,
    ends_at          BIGINT NOT NULL,
    revoked_at       BIGINT,
    revoked_why      TEXT NOT NULL
);
CREATE INDEX sessions_by_account ON sessions (account_id, id);
CREATE INDEX sessions_by_end ON sessions (idle_until);

-- Every refresh token that was ever replaced, so that a late reuse of any generation is noticed.
CREATE TABLE spent_tokens (
    hash             BLOB NOT NULL PRIMARY KEY,
    session_id       TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    spent_at         BIGINT NOT NULL
);
CREATE INDEX spent_tokens_by_session ON spent_tokens (session_id);

-- Failed sign-ins, counted per keyed hash of account and address.
CREATE TABLE sign_in_failures (
    n                INTEGER PRIMARY KEY AUTOINCREMENT,
    subject          BLOB NOT NULL,
    at               BIGINT NOT NULL
);
CREATE INDEX sign_in_failures_by_subject ON sign_in_failures (subject, at);
CREATE INDEX sign_in_failures_by_age ON sign_in_failures (at);

-- Which tenants have something due, and when. Lossy: a slow sweep repairs it.
CREATE TABLE hints (
    tenant_id        TEXT NOT NULL PRIMARY KEY,
    due_at           BIGINT NOT NULL
);
CREATE INDEX hints_by_due ON hints (due_at);

-- Facts about the installation itself (the setup token's hash, secrets generated in development; sealed).
CREATE TABLE facts (
    name             TEXT NOT NULL PRIMARY KEY,
    value            BLOB NOT NULL,
    updated_at       BIGINT NOT NULL
);

-- The log: one row, whose lock orders the commits that announce something.
CREATE TABLE log_head (
    one              BIGINT NOT NULL PRIMARY KEY CHECK (one = 1),
    seq              BIGINT NOT NULL
);
INSERT INTO log_head (one, seq) VALUES (1, 0);

CREATE TABLE events (
    seq              BIGINT NOT NULL PRIMARY KEY,
    id               TEXT NOT NULL UNIQUE,
    type             TEXT NOT NULL,
    subject          TEXT NOT NULL,
    actor_id         TEXT NOT NULL,
    actor_name       TEXT NOT NULL,
    created_at       BIGINT NOT NULL,
    data             TEXT NOT NULL
);

CREATE TABLE audit (
    n                INTEGER PRIMARY KEY AUTOINCREMENT,
    id               TEXT NOT NULL UNIQUE,
    at               BIGINT NOT NULL,
    action           TEXT NOT NULL,
    subject          TEXT NOT NULL,
    outcome          TEXT NOT NULL,
    actor_id         TEXT NOT NULL,
    actor_name       TEXT NOT NULL,
    session_id       TEXT NOT NULL,
    address          TEXT NOT NULL,
    request_id       TEXT NOT NULL,
    detail           TEXT NOT NULL
);

CREATE TABLE idempotency (
    scope            TEXT NOT NULL,
    key              TEXT NOT NULL,
    fingerprint      BLOB NOT NULL,
    result           BLOB NOT NULL,
    expires_at       BIGINT NOT NULL,
    PRIMARY KEY (scope, key)
);
CREATE INDEX idempotency_by_expiry ON idempotency (expires_at);

CREATE INDEX audit_by_actor ON audit (actor_id, n);
CREATE INDEX audit_by_subject ON audit (subject, n);
