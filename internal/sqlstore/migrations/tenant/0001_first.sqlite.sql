-- One tenant's data: everything one account wrote, and nothing of anyone else.
-- Times are microseconds since 1970 in UTC; JSON is text; flags are 0 or 1.

CREATE TABLE projects (
    n                INTEGER PRIMARY KEY AUTOINCREMENT,
    id               TEXT NOT NULL UNIQUE,
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
    version          BIGINT NOT NULL,
    created_at       BIGINT NOT NULL,
    updated_at       BIGINT NOT NULL
);

CREATE TABLE conversations (
    n                INTEGER PRIMARY KEY AUTOINCREMENT,
    id               TEXT NOT NULL UNIQUE,
    project_id       TEXT REFERENCES projects (id) ON DELETE SET NULL,
    title            TEXT NOT NULL,
    title_folded     TEXT NOT NULL,
    title_by_hand    BIGINT NOT NULL,
    description      TEXT NOT NULL,
    status           TEXT NOT NULL,
    importance_level BIGINT NOT NULL,
    tags             TEXT NOT NULL,
    system           TEXT NOT NULL,
    provider         TEXT NOT NULL,
    model            TEXT NOT NULL,
    settings         TEXT NOT NULL,
    creator_id       TEXT NOT NULL,
    creator_name     TEXT NOT NULL,
    message_count    BIGINT NOT NULL,
    leaf_id          TEXT NOT NULL,
    branch_count     BIGINT NOT NULL,
    version          BIGINT NOT NULL,
    created_at       BIGINT NOT NULL,
    updated_at       BIGINT NOT NULL,
    last_message_at  BIGINT
);
CREATE INDEX conversations_by_update ON conversations (updated_at, n);
CREATE INDEX conversations_by_project ON conversations (project_id, updated_at, n);

-- A branch holds the messages deeper than fork_depth; up to there its path is the parent's.
CREATE TABLE branches (
    conversation_id  TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
    branch           BIGINT NOT NULL,
    parent_branch    BIGINT NOT NULL,
    fork_depth       BIGINT NOT NULL,
    PRIMARY KEY (conversation_id, branch)
);

CREATE TABLE messages (
    n                INTEGER PRIMARY KEY AUTOINCREMENT,
    id               TEXT NOT NULL UNIQUE,
    conversation_id  TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
    parent_id        TEXT NOT NULL,
    turn_id          TEXT NOT NULL,
    branch           BIGINT NOT NULL,
    depth            BIGINT NOT NULL,
    role             TEXT NOT NULL,
    content          TEXT NOT NULL,
    content_length   BIGINT NOT NULL,
    blocks           TEXT,
    state            TEXT NOT NULL,
    author_id        TEXT NOT NULL,
    author_name      TEXT NOT NULL,
    provider         TEXT NOT NULL,
    model            TEXT NOT NULL,
    stop_reason      TEXT NOT NULL,
    input_tokens     BIGINT NOT NULL,
    output_tokens    BIGINT NOT NULL,
    cache_read_input_tokens     BIGINT NOT NULL,
    cache_creation_input_tokens BIGINT NOT NULL,
    raw_usage        TEXT,
    cost_microusd    BIGINT NOT NULL,
    first_token_ms   BIGINT NOT NULL,
    latency_ms       BIGINT NOT NULL,
    error_code       TEXT NOT NULL,
    error_detail     TEXT NOT NULL,
    tokens           BIGINT NOT NULL,
    tokens_up_to     BIGINT NOT NULL,
    prefix_hash      TEXT NOT NULL,
    created_at       BIGINT NOT NULL,
    updated_at       BIGINT NOT NULL
);
CREATE UNIQUE INDEX messages_by_place ON messages (conversation_id, branch, depth);
CREATE INDEX messages_by_age ON messages (conversation_id, n);

CREATE TABLE turns (
    id               TEXT NOT NULL PRIMARY KEY,
    conversation_id  TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
    user_message_id  TEXT NOT NULL,
    assistant_message_id TEXT NOT NULL,
    kind             TEXT NOT NULL,
    state            TEXT NOT NULL,
    provider         TEXT NOT NULL,
    model            TEXT NOT NULL,
    max_tokens       BIGINT NOT NULL,
    system_hash      TEXT NOT NULL,
    omitted          BIGINT NOT NULL,
    error_code       TEXT NOT NULL,
    error_detail     TEXT NOT NULL,
    node             TEXT NOT NULL,
    lease_until      BIGINT NOT NULL,
    started_at       BIGINT NOT NULL,
    finished_at      BIGINT
);
CREATE INDEX turns_by_conversation ON turns (conversation_id);
CREATE INDEX turns_running ON turns (started_at) WHERE state IN ('streaming', 'waiting');

-- System prompts as they were sent, once per text.
CREATE TABLE systems (
    hash             TEXT NOT NULL PRIMARY KEY,
    body             TEXT NOT NULL,
    created_at       BIGINT NOT NULL
);

-- The index of words. The columns hold folded words and stems, made by package words; no text is kept here.
-- Positions are kept for phrases; ranking happens outside. Deleting without content needs columnsize. Beginnings of two
-- letters have entries of their own, as too many words have them to be looked up one after the other.
CREATE VIRTUAL TABLE message_words USING fts5 (words, stems, content='', contentless_delete=1, columnsize=1, tokenize='ascii', prefix='2');
CREATE VIRTUAL TABLE title_words USING fts5 (words, stems, content='', contentless_delete=1, columnsize=1, tokenize='ascii', prefix='2');

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
