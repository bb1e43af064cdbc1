-- Addresses that are told of events.
CREATE TABLE webhooks (
    n                INTEGER PRIMARY KEY AUTOINCREMENT,
    id               TEXT NOT NULL UNIQUE,
    suffix           TEXT NOT NULL UNIQUE,
    name             TEXT NOT NULL,
    description      TEXT NOT NULL,
    url              TEXT NOT NULL,
    events           TEXT NOT NULL,
    project_id       TEXT,
    ordered          BIGINT NOT NULL,
    state            TEXT NOT NULL,
    reason           TEXT NOT NULL,
    secret           BLOB NOT NULL,
    secret_before    BLOB,
    before_until     BIGINT,
    failing_since    BIGINT,
    slowed           BIGINT NOT NULL,
    hold_until       BIGINT,
    notice_due       BIGINT,
    version          BIGINT NOT NULL,
    created_at       BIGINT NOT NULL,
    updated_at       BIGINT NOT NULL
);

-- One event for one of them: made by the transaction that the event is of. What is pending is due at due_at; while
-- somebody sends it, claim says who, and due_at when that is over. A body is there of a test only: others are made of the
-- event.
CREATE TABLE deliveries (
    n                INTEGER PRIMARY KEY AUTOINCREMENT,
    id               TEXT NOT NULL UNIQUE,
    webhook_id       TEXT NOT NULL REFERENCES webhooks (id) ON DELETE CASCADE,
    seq              BIGINT NOT NULL,
    event_id         TEXT NOT NULL,
    event_type       TEXT NOT NULL,
    conversation_id  TEXT NOT NULL,
    state            TEXT NOT NULL,
    attempts         BIGINT NOT NULL,
    tries            BIGINT NOT NULL,
    due_at           BIGINT NOT NULL,
    claim            TEXT NOT NULL,
    body             TEXT,
    created_at       BIGINT NOT NULL,
    finished_at      BIGINT
);
CREATE INDEX deliveries_due ON deliveries (webhook_id, due_at, n) WHERE state = 'pending';
CREATE INDEX deliveries_in_order ON deliveries (webhook_id, conversation_id, seq) WHERE state = 'pending';
CREATE INDEX deliveries_by_age ON deliveries (webhook_id, created_at, n);
CREATE INDEX deliveries_finished ON deliveries (finished_at) WHERE state <> 'pending';

CREATE TABLE attempts (
    delivery_id      TEXT NOT NULL REFERENCES deliveries (id) ON DELETE CASCADE,
    number           BIGINT NOT NULL,
    started_at       BIGINT NOT NULL,
    latency_ms       BIGINT NOT NULL,
    status           BIGINT NOT NULL,
    error            TEXT NOT NULL,
    answer           TEXT NOT NULL,
    PRIMARY KEY (delivery_id, number)
);
