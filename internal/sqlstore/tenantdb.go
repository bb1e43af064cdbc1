package sqlstore

import (
	"context"
	"encoding/json"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"golang.org/x/text/unicode/norm"

	"claude-memory-backend/internal/audit"
	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/project"
	"claude-memory-backend/internal/tenant"
)

// TenantStore keeps what one tenant wrote, in a database of its own: it cannot reach another one's.
type TenantStore struct {
	db       *DB
	onCommit func(event.Seq)
	limits   func() tenant.Limits  // what may be kept at the moment; nil: everything
	only     ident.ProjectID       // the project that the store is about; empty: everything, see Only
	promise  func(context.Context) // hears of transactions that may add deliveries, before them; nil: nobody does
	queued   func()                // and of those that did, afterwards
	watched  *atomic.Bool          // there were endpoints when RunningTurns last looked
}

var (
	_ project.Store      = (*TenantStore)(nil)
	_ conversation.Store = (*TenantStore)(nil)
	_ event.Log          = (*TenantStore)(nil)
	_ audit.Store        = trail{}
)

// NewTenantStore speaks to a migrated database of the tenant line. onCommit, which may be nil, hears the log's new end
// after each commit that appended events; it is called by whoever committed and must not block.
func NewTenantStore(db *DB, onCommit func(event.Seq)) *TenantStore {
	return &TenantStore{db: db, onCommit: onCommit, watched: new(atomic.Bool)}
}

// Within bounds what people may add, by the limits of the moment, and returns s. What there is no room for is
// fault.Forbidden, code "quota_messages" or "quota_storage". The system itself is never refused: an answer that was paid
// for is kept.
func (s *TenantStore) Within(limits func() tenant.Limits) *TenantStore {
	s.limits = limits
	return s
}

// FindOnce implements event.Onces for projects and conversations alike.
func (s *TenantStore) FindOnce(ctx context.Context, scope, key string) (event.Once, error) {
	return findOnce(ctx, s.db, scope, key, time.Now())
}

// SweepOnces forgets idempotency records that expired and returns how many there were.
func (s *TenantStore) SweepOnces(ctx context.Context, now time.Time) (int64, error) {
	return deleteExpiredOnces(ctx, s.db, now)
}

func (s *TenantStore) change(ctx context.Context, fn func(tx *Tx, head *event.Seq) error) error {
	if s.promise != nil {
		s.promise(ctx)
	}
	var last *Tx
	err := s.db.change(ctx, s.onCommit, func(tx *Tx, head *event.Seq) error {
		last = tx
		return fn(tx, head)
	})
	if s.queued != nil && last != nil && last.queued != nil && last.queued.N > 0 {
		s.queued() // also when nobody knows whether it committed
	}
	return s.full(ctx, err)
}

// folded is the form in which names and titles are compared and sorted. Go folds, not the engine: SQLite knows the case
// of ASCII only. Punctuation stays, since a part of a title is searched as it was typed; words.Fold drops it.
func folded(text string) string {
	if !ValidText(text) {
		return text // ToLower would repair it, and nobody would refuse it any more
	}
	return norm.NFC.String(strings.ToLower(text))
}

// optional is NULL for the empty identifier.
func optional[T ~string](id T) *string {
	if id == "" {
		return nil
	}
	text := string(id)
	return &text
}

// moment is NULL for no time.
func moment(t *time.Time) *int64 {
	if t == nil {
		return nil
	}
	micros := ident.Micros(*t)
	return &micros
}

func timeOf(micros *int64) *time.Time {
	if micros == nil {
		return nil
	}
	t := ident.Time(*micros)
	return &t
}

// encodeTags writes tags as a JSON array. JSON would hide a NUL in an escape and replace bytes that are no UTF-8, so
// both are refused here, as Batch refuses them elsewhere.
func encodeTags(tags []string) (string, error) {
	for _, tag := range tags {
		if !ValidText(tag) {
			return "", fault.New(fault.Invalid, "sqlstore.Tags", "invalid_text",
				"text must be valid UTF-8 without NUL characters")
		}
	}
	if tags == nil {
		tags = []string{}
	}
	raw, err := json.Marshal(tags)
	return string(raw), err
}

func decodeTags(text string) ([]string, error) {
	tags := []string{}
	err := json.Unmarshal([]byte(text), &tags)
	return tags, err
}

// hasTag is the condition that the JSON array in column tags holds the string ?. A search in the array's text could
// be fooled by quotes and commas inside a tag.
func hasTag(d Dialect) string {
	return d.Pick(`EXISTS (SELECT 1 FROM json_each(tags) AS tag WHERE tag.value = ?)`,
		`CAST(tags AS jsonb) @> to_jsonb(CAST(? AS text))`)
}

// contains is the condition that a column holds the text ? somewhere.
func contains(d Dialect, column string) string {
	return d.Pick("instr", "strpos") + "(" + column + ", ?) > 0"
}

// units is the length of text in UTF-16 code units, in which clients count.
func units(text string) int {
	n := utf8.RuneCountInString(text)
	for i := 0; i < len(text); i++ {
		if text[i] >= 0xF0 { // the first byte of a character beyond the basic plane: a surrogate pair
			n++
		}
	}
	return n
}

// conditions collects what a listing asks for.
type conditions struct {
	list []string
	args []any
}

func (c *conditions) and(condition string, args ...any) {
	c.list, c.args = append(c.list, condition), append(c.args, args...)
}

func (c *conditions) also(other conditions) {
	c.list, c.args = append(c.list, other.list...), append(c.args, other.args...)
}

// where is the clause, with a leading space; empty when nothing is asked.
func (c *conditions) where() string {
	if len(c.list) == 0 {
		return ""
	}
	return " WHERE " + strings.Join(c.list, " AND ")
}
