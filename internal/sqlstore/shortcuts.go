package sqlstore

import (
	"context"
	"encoding/json"

	"claude-memory-backend/internal/access"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/member"
	"claude-memory-backend/internal/project"
)

var _ member.Projects = (*TenantStore)(nil)

// Only is the store of one project alone: what does not belong to it is not found, and cannot be added. It is for those
// who are members of the project and have nothing else to look for in its owner's tenant.
func (s *TenantStore) Only(p ident.ProjectID) *TenantStore {
	c := *s
	c.only = p
	return &c
}

// sees reports whether what belongs to a project may be seen through this store.
func (s *TenantStore) sees(p ident.ProjectID) bool { return s.only == "" || s.only == p }

// lookFor queues, for the store of one project, whether the conversation is in it; what is returned says so once the batch
// has run.
func (s *TenantStore) lookFor(b *Batch, id ident.ConversationID) (there func() bool) {
	if s.only == "" {
		return func() bool { return true }
	}
	var one int64
	found := b.One([]any{&one}, `SELECT 1 FROM conversations WHERE id = ? AND project_id = ?`, id, s.only)
	return func() bool { return found.Yes }
}

// HasProject implements member.Projects.
func (s *TenantStore) HasProject(ctx context.Context, id ident.ProjectID) error {
	if !s.sees(id) {
		return fault.Missing("sqlstore.HasProject")
	}
	return s.holds(ctx, `SELECT 1 FROM projects WHERE id = ?`, id)
}

// Writable implements member.Projects.
func (s *TenantStore) Writable() error { return s.db.Writable() }

// Holds is NotFound when there is nothing of that id here: a project or a conversation.
func (s *TenantStore) Holds(ctx context.Context, subject string) error {
	return s.holds(ctx, `SELECT 1 FROM projects WHERE id = ?1 AND (?2 = '' OR id = ?2)
		UNION ALL SELECT 1 FROM conversations WHERE id = ?1 AND (?2 = '' OR project_id = ?2)`, subject, string(s.only))
}

func (s *TenantStore) holds(ctx context.Context, sql string, args ...any) error {
	var one int64
	var found *Found
	err := s.db.Read(ctx, func(b *Batch) { found = b.One([]any{&one}, sql, args...) })
	if err == nil && !found.Yes {
		err = fault.Missing("sqlstore.Holds")
	}
	return err
}

// Parts implements member.Projects.
func (s *TenantStore) Parts(ctx context.Context, id ident.ProjectID) ([]access.Part, error) {
	var list []access.Part
	err := s.db.Read(ctx, func(b *Batch) {
		list = nil
		b.Query(func(s Scanner) error {
			var p access.Part
			err := s.Scan(&p.ID, &p.Version)
			list = append(list, p)
			return err
		}, `SELECT id, version FROM conversations WHERE project_id = ? ORDER BY n`, id)
	})
	return list, err
}

const shortcutColumns = `n, id, name, description, instructions, status, priority, color, icon, tags, provider, model,
	settings, deadline, owner_id, owner_name, version, created_at, updated_at, conversations, role`

func scanShortcut(s Scanner) (p project.Project, err error) {
	var r projectRow
	if err = s.Scan(append(r.dest(), &r.Role)...); err != nil {
		return p, err
	}
	return r.done()
}

// PutShortcut notes what a project of somebody else looks like, of which the tenant's owner is a member with p.Role. Like
// the index of words it is derived, and no change of the tenant's own.
func (s *TenantStore) PutShortcut(ctx context.Context, p project.Project) error {
	tags, err := encodeTags(p.Tags)
	if err != nil {
		return err
	}
	return s.db.Write(ctx, func(tx *Tx) error {
		return tx.Commit(func(b *Batch) {
			b.Exec(`INSERT INTO shortcuts (id, role, name, name_folded, description, instructions, status, priority, color, icon,
				tags, provider, model, settings, deadline, owner_id, owner_name, conversations, version, created_at, updated_at)
				VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
				ON CONFLICT (id) DO UPDATE SET role = excluded.role, name = excluded.name, name_folded = excluded.name_folded,
				description = excluded.description, instructions = excluded.instructions, status = excluded.status,
				priority = excluded.priority, color = excluded.color, icon = excluded.icon, tags = excluded.tags,
				provider = excluded.provider, model = excluded.model, settings = excluded.settings, deadline = excluded.deadline,
				owner_id = excluded.owner_id, owner_name = excluded.owner_name, conversations = excluded.conversations,
				version = excluded.version, created_at = excluded.created_at, updated_at = excluded.updated_at`,
				p.ID, p.Role, p.Name, folded(p.Name), p.Description, p.Instructions, p.Status, p.Priority, p.Color, p.Icon,
				tags, p.Provider, p.Model, object(p.Settings), moment(p.Deadline), p.Owner.ID, p.Owner.Name, p.ConversationCount,
				p.Version, ident.Micros(p.CreatedAt), ident.Micros(p.UpdatedAt))
		})
	})
}

// DropShortcut forgets a project of somebody else. What is gone already is no error.
func (s *TenantStore) DropShortcut(ctx context.Context, id ident.ProjectID) error {
	return s.db.Write(ctx, func(tx *Tx) error {
		return tx.Commit(func(b *Batch) { b.Exec(`DELETE FROM shortcuts WHERE id = ?`, id) })
	})
}

// Shortcuts lists the projects of others that there are shortcuts to.
func (s *TenantStore) Shortcuts(ctx context.Context) ([]ident.ProjectID, error) {
	var list []ident.ProjectID
	err := s.db.Read(ctx, func(b *Batch) {
		list = nil
		b.Query(func(s Scanner) error {
			var id ident.ProjectID
			err := s.Scan(&id)
			list = append(list, id)
			return err
		}, `SELECT id FROM shortcuts ORDER BY id`)
	})
	return list, err
}

// projectRow is a project, or a shortcut to one, while it is scanned.
type projectRow struct {
	project.Project
	n                int64
	tags, settings   string
	deadline         *int64
	created, updated int64
}

// dest is where projectColumns go; done is called when they are there.
func (r *projectRow) dest() []any {
	return []any{&r.n, &r.ID, &r.Name, &r.Description, &r.Instructions, &r.Status, &r.Priority, &r.Color, &r.Icon, &r.tags,
		&r.Provider, &r.Model, &r.settings, &r.deadline, &r.Owner.ID, &r.Owner.Name, &r.Version, &r.created, &r.updated,
		&r.ConversationCount}
}

func (r *projectRow) done() (_ project.Project, err error) {
	r.Settings = json.RawMessage(r.settings)
	r.Deadline, r.CreatedAt, r.UpdatedAt = timeOf(r.deadline), ident.Time(r.created), ident.Time(r.updated)
	r.Tags, err = decodeTags(r.tags)
	return r.Project, err
}
