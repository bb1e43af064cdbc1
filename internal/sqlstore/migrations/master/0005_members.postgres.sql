-- Who is a member of which project: ids only. The project itself, with its name and everything in it, lies in its owner's
-- tenant.
CREATE TABLE grants (
    project_id       TEXT COLLATE "C" NOT NULL,
    account_id       TEXT COLLATE "C" NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    tenant_id        TEXT COLLATE "C" NOT NULL REFERENCES tenants (id) ON DELETE CASCADE,
    role             TEXT COLLATE "C" NOT NULL,
    created_at       BIGINT NOT NULL,
    updated_at       BIGINT NOT NULL,
    PRIMARY KEY (project_id, account_id)
);
CREATE INDEX grants_by_account ON grants (account_id);
CREATE INDEX grants_by_tenant ON grants (tenant_id);

-- Addresses that have no account yet: the grant comes when one registers.
CREATE TABLE invitations (
    id               TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    project_id       TEXT COLLATE "C" NOT NULL,
    tenant_id        TEXT COLLATE "C" NOT NULL REFERENCES tenants (id) ON DELETE CASCADE,
    email            TEXT COLLATE "C" NOT NULL,
    email_folded     TEXT COLLATE "C" NOT NULL,
    role             TEXT COLLATE "C" NOT NULL,
    inviter_id       TEXT COLLATE "C" NOT NULL,
    created_at       BIGINT NOT NULL,
    UNIQUE (project_id, email_folded)
);
CREATE INDEX invitations_by_email ON invitations (email_folded);
CREATE INDEX invitations_by_tenant ON invitations (tenant_id);

-- In which tenant shared projects and their conversations are. A row says where to look, never that there is something or
-- who may see it; while a conversation moves it has two. The version is that of the conversation when the row was written:
-- an older word does not undo a newer.
CREATE TABLE routes (
    id               TEXT COLLATE "C" NOT NULL,
    project_id       TEXT COLLATE "C" NOT NULL,
    tenant_id        TEXT COLLATE "C" NOT NULL REFERENCES tenants (id) ON DELETE CASCADE,
    version          BIGINT NOT NULL,
    PRIMARY KEY (id, project_id)
);
CREATE INDEX routes_by_project ON routes (project_id);
CREATE INDEX routes_by_tenant ON routes (tenant_id);

-- Shortcuts in members' tenants that have to be looked at: all of an account's where the project is empty. Whoever looks
-- takes the row away, unless it was marked once more meanwhile.
CREATE TABLE shortcuts_due (
    account_id       TEXT COLLATE "C" NOT NULL REFERENCES accounts (id) ON DELETE CASCADE,
    project_id       TEXT COLLATE "C" NOT NULL,
    due_at           BIGINT NOT NULL,
    marks            BIGINT NOT NULL,
    PRIMARY KEY (account_id, project_id)
);
CREATE INDEX shortcuts_due_by_time ON shortcuts_due (due_at);
