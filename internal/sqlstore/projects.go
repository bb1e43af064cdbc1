package sqlstore

import (
	"context"
	"reflect"
	"slices"
	"strings"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/project"
)

const projectColumns = `n, id, name, description, instructions, status, priority, color, icon, tags, provider, model,
	settings, deadline, owner_id, owner_name, version, created_at, updated_at,
	(SELECT count(*) FROM conversations c WHERE c.project_id = projects.id)`

func scanProject(s Scanner) (project.Project, error) {
	var r projectRow
	if err := s.Scan(r.dest()...); err != nil {
		return project.Project{}, err
	}
	return r.done()
}

// InsertProject implements project.Store.
func (s *TenantStore) InsertProject(ctx context.Context, p project.Project, ch event.Change) error {
	tags, err := encodeTags(p.Tags)
	if err != nil {
		return err
	}
	return s.change(ctx, func(tx *Tx, head *event.Seq) error {
		return tx.Commit(func(b *Batch) {
			b.Exec(`INSERT INTO projects (id, name, name_folded, description, instructions, status, priority, color, icon,
				tags, provider, model, settings, deadline, owner_id, owner_name, version, created_at, updated_at)
				VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
				p.ID, p.Name, folded(p.Name), p.Description, p.Instructions, p.Status, p.Priority, p.Color, p.Icon,
				tags, p.Provider, p.Model, object(p.Settings), moment(p.Deadline), p.Owner.ID, p.Owner.Name, p.Version,
				ident.Micros(p.CreatedAt), ident.Micros(p.UpdatedAt))
			s.count(b, ch, 0, bytesOfProject(p, tags))
			s.appendChange(b, ch, head)
		})
	})
}

// FindProject implements project.Store.
func (s *TenantStore) FindProject(ctx context.Context, id ident.ProjectID) (project.Project, error) {
	var list []project.Project
	err := s.db.Read(ctx, func(b *Batch) { selectProject(b, &list, id, "") })
	if err == nil && (len(list) == 0 || !s.sees(id)) {
		err = fault.Missing("sqlstore.FindProject")
	}
	if err != nil {
		return project.Project{}, err
	}
	return list[0], nil
}

// selectProject queues the reading of one project into list, which stays empty when there is none.
func selectProject(b *Batch, list *[]project.Project, id ident.ProjectID, lock string) {
	*list = nil
	b.Query(func(s Scanner) error {
		p, err := scanProject(s)
		*list = append(*list, p)
		return err
	}, `SELECT `+projectColumns+` FROM projects WHERE id = ?`+lock, id)
}

// ListProjects implements project.Store. Own projects and shortcuts to others' come in the order of their ids, which is
// that of their making: whatever is added, a page goes on behind the last one.
func (s *TenantStore) ListProjects(ctx context.Context, q project.Query) ([]project.Project, string, error) {
	limit := max(1, q.Limit)
	if err := new(conditions).beforeCursor("projects", "id", q.Cursor); err != nil {
		return nil, "", err
	}
	var list []project.Project
	read := func(shortcuts bool) error {
		return s.db.Read(ctx, func(b *Batch) {
			var c conditions
			_ = c.beforeCursor("projects", "id", q.Cursor) // it is one: see above
			if q.Status != "" {
				c.and("status = ?", q.Status)
			}
			if q.Tag != "" {
				c.and(hasTag(b.Dialect()), q.Tag)
			}
			if q.Text != "" {
				c.and(contains(b.Dialect(), "name_folded"), folded(q.Text))
			}
			args := append(c.args, limit+1)
			list = nil
			take := func(scan func(Scanner) (project.Project, error)) func(Scanner) error {
				return func(s Scanner) error {
					p, err := scan(s)
					list = append(list, p)
					return err
				}
			}
			b.Query(take(scanProject), `SELECT `+projectColumns+` FROM projects`+c.where()+` ORDER BY id DESC LIMIT ?`, args...)
			if shortcuts {
				b.Query(take(scanShortcut), `SELECT `+shortcutColumns+` FROM shortcuts`+c.where()+` ORDER BY id DESC LIMIT ?`, args...)
			}
		})
	}
	err := read(true)
	if fault.Is(err, fault.Internal) {
		err = read(false) // the schema of a version before has no such table
	}
	if err != nil {
		return nil, "", err
	}
	slices.SortFunc(list, func(a, b project.Project) int { return strings.Compare(string(b.ID), string(a.ID)) })
	if len(list) <= limit {
		return list, "", nil
	}
	return list[:limit], formatCursor(idCursor{Kind: "projects", ID: string(list[limit-1].ID)}), nil
}

// UpdateProject implements project.Store.
func (s *TenantStore) UpdateProject(ctx context.Context, id ident.ProjectID,
	edit func(project.Project) (project.Project, event.Change, error)) (project.Project, error) {
	var after project.Project
	err := s.change(ctx, func(tx *Tx, head *event.Seq) error {
		var list []project.Project
		if err := tx.Run(func(b *Batch) { selectProject(b, &list, id, tx.Dialect().ForUpdate()) }); err != nil {
			return err
		}
		if len(list) == 0 || !s.sees(id) {
			return fault.Missing("sqlstore.UpdateProject")
		}
		p, ch, err := edit(list[0])
		if err != nil {
			return err
		}
		after = p
		if len(ch.Events) == 0 && ch.Once == nil && reflect.DeepEqual(p, list[0]) {
			return nil
		}
		tags, err := encodeTags(p.Tags)
		if err != nil {
			return err
		}
		tagsBefore, err := encodeTags(list[0].Tags)
		if err != nil {
			return err
		}
		return tx.Commit(func(b *Batch) {
			b.Exec(`UPDATE projects SET name = ?, name_folded = ?, description = ?, instructions = ?, status = ?,
				priority = ?, color = ?, icon = ?, tags = ?, provider = ?, model = ?, settings = ?, deadline = ?,
				owner_id = ?, owner_name = ?, version = ?, updated_at = ? WHERE id = ?`,
				p.Name, folded(p.Name), p.Description, p.Instructions, p.Status, p.Priority, p.Color, p.Icon, tags,
				p.Provider, p.Model, object(p.Settings), moment(p.Deadline), p.Owner.ID, p.Owner.Name, p.Version,
				ident.Micros(p.UpdatedAt), id)
			s.count(b, ch, 0, bytesOfProject(p, tags)-bytesOfProject(list[0], tagsBefore))
			s.appendChange(b, ch, head)
		})
	})
	if err != nil {
		return project.Project{}, err
	}
	return after, nil
}

// DeleteProject implements project.Store.
func (s *TenantStore) DeleteProject(ctx context.Context, id ident.ProjectID, drop bool,
	decide func(p project.Project, conversations int64) (event.Change, error)) error {
	return s.change(ctx, func(tx *Tx, head *event.Seq) error {
		// With the project's row locked nothing can join it: a conversation that wants to waits for this lock.
		var list []project.Project
		var concerned []ident.ConversationID
		var messages, said, kept int
		if err := tx.Run(func(b *Batch) {
			selectProject(b, &list, id, tx.Dialect().ForUpdate())
			concerned = nil
			b.Query(func(s Scanner) error {
				var c ident.ConversationID
				err := s.Scan(&c)
				concerned = append(concerned, c)
				return err
			}, `SELECT id FROM conversations WHERE project_id = ? ORDER BY n`+tx.Dialect().ForUpdate(), id)
			if drop {
				lockRunning(b, tx.Dialect(), `SELECT id FROM conversations WHERE project_id = ?`, string(id))
				b.One([]any{&messages, &said}, ofMessages+` WHERE conversation_id IN (SELECT id FROM conversations WHERE project_id = ?)`, id)
				b.One([]any{&kept}, ofConversations+` WHERE project_id = ?`, id)
			}
		}); err != nil {
			return err
		}
		if len(list) == 0 || !s.sees(id) {
			return fault.Missing("sqlstore.DeleteProject")
		}
		ch, err := decide(list[0], int64(len(concerned)))
		if err != nil {
			return err
		}
		tags, err := encodeTags(list[0].Tags)
		if err != nil {
			return err
		}
		return tx.Commit(func(b *Batch) {
			if drop {
				for _, conv := range concerned {
					unindexConversation(b, tx.Dialect(), conv)
				}
				b.Exec(`DELETE FROM conversations WHERE project_id = ?`, id)
			}
			b.Exec(`DELETE FROM projects WHERE id = ?`, id)
			addUsage(b, -messages, -said-kept-bytesOfProject(list[0], tags))
			s.appendChange(b, ch, head)
		})
	})
}
