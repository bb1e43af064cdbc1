-- Where tenants' data lives: one row per copy, so that a tenant can have its own database, keep the one that it left,
-- and go back. What is sealed here opens under MASTER_KEY only.
CREATE TABLE databases (
    id               TEXT NOT NULL PRIMARY KEY,
    tenant_id        TEXT NOT NULL REFERENCES tenants (id) ON DELETE CASCADE,
    name             TEXT NOT NULL,
    kind             TEXT NOT NULL,
    host             TEXT NOT NULL,
    port             BIGINT NOT NULL,
    dbname           TEXT NOT NULL,
    username         TEXT NOT NULL,
    tls              TEXT NOT NULL,
    sealed_password  BLOB,
    wrapped_key      BLOB,
    state            TEXT NOT NULL,
    schema_version   BIGINT NOT NULL,
    size_bytes       BIGINT NOT NULL,
    problem          TEXT NOT NULL,
    checked_at       BIGINT,
    version          BIGINT NOT NULL,
    created_at       BIGINT NOT NULL,
    updated_at       BIGINT NOT NULL
);
CREATE INDEX databases_by_tenant ON databases (tenant_id, id);

-- A tenant's first database has the tenant's own characters in its id.
INSERT INTO databases (id, tenant_id, name, kind, host, port, dbname, username, tls, wrapped_key, state,
        schema_version, size_bytes, problem, version, created_at, updated_at)
    SELECT 'db_' || substr(id, 5), id, 'Hosted', kind, host, 0, '', '', '', wrapped_key, 'active', 0, 0, '', 1,
        created_at, created_at FROM tenants;

ALTER TABLE tenants ADD COLUMN database_id TEXT NOT NULL DEFAULT '';
ALTER TABLE tenants ADD COLUMN job_id TEXT NOT NULL DEFAULT '';
ALTER TABLE tenants ADD COLUMN max_bytes BIGINT NOT NULL DEFAULT 0;
ALTER TABLE tenants ADD COLUMN max_count BIGINT NOT NULL DEFAULT 0;
ALTER TABLE tenants ADD COLUMN schema_version BIGINT NOT NULL DEFAULT 0;
ALTER TABLE tenants ADD COLUMN schema_problem TEXT NOT NULL DEFAULT '';
ALTER TABLE tenants ADD COLUMN schema_at BIGINT NOT NULL DEFAULT 0;
UPDATE tenants SET database_id = 'db_' || substr(id, 5);
ALTER TABLE tenants DROP COLUMN kind;
ALTER TABLE tenants DROP COLUMN host;
ALTER TABLE tenants DROP COLUMN wrapped_key;

-- Work on whole tenants, or on all of them: moving, erasing, migrating.
CREATE TABLE jobs (
    id               TEXT NOT NULL PRIMARY KEY,
    kind             TEXT NOT NULL,
    account_id       TEXT NOT NULL,
    tenant_id        TEXT NOT NULL,
    state            TEXT NOT NULL,
    done             BIGINT NOT NULL,
    total            BIGINT NOT NULL,
    unit             TEXT NOT NULL,
    input            TEXT NOT NULL,
    saved            TEXT NOT NULL,
    report           TEXT NOT NULL,
    error_code       TEXT NOT NULL,
    error_detail     TEXT NOT NULL,
    cancel           BIGINT NOT NULL,
    node             TEXT NOT NULL,
    lease_until      BIGINT NOT NULL,
    attempts         BIGINT NOT NULL,
    created_at       BIGINT NOT NULL,
    started_at       BIGINT,
    finished_at      BIGINT
);
CREATE INDEX jobs_by_account ON jobs (account_id, id);
CREATE INDEX jobs_by_tenant ON jobs (tenant_id, id);
CREATE INDEX jobs_unfinished ON jobs (lease_until) WHERE state IN ('queued', 'running');

-- Tenants that were erased: they never come back, whatever backup is restored.
CREATE TABLE erasures (
    tenant_id        TEXT NOT NULL PRIMARY KEY,
    account_id       TEXT NOT NULL,
    erased_at        BIGINT NOT NULL
);
