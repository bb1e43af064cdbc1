-- Events of this database's log that belong into a tenant's own log and are not there yet.
CREATE TABLE news (
    event_id         TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    tenant_id        TEXT COLLATE "C" NOT NULL REFERENCES tenants (id) ON DELETE CASCADE,
    due_at           BIGINT NOT NULL
);
CREATE INDEX news_by_time ON news (due_at);
CREATE INDEX news_by_tenant ON news (tenant_id);
