package sqlstore

import (
	"encoding/json"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

// tree is a conversation that branches anywhere, also above its first messages.
type tree struct {
	id    ident.ConversationID
	list  []conversation.Message // in the order in which they came
	index map[ident.MessageID]conversation.Message
}

// grow makes one of n messages, with blocks as long as size says.
func grow(t *testing.T, db *DB, dice *rand.Rand, n int, size func() int) *tree {
	t.Helper()
	s := NewTenantStore(db, nil)
	g := &tree{id: ident.New[ident.ConversationID](), index: map[ident.MessageID]conversation.Message{}}
	now := time.Now().UTC().Truncate(time.Microsecond)
	if err := s.InsertConversation(t.Context(), conversation.Conversation{ID: g.id, Version: 1, CreatedAt: now, UpdatedAt: now}, event.Change{}); err != nil {
		t.Fatal(err)
	}
	for range n {
		where := conversation.Where{Root: len(g.list) == 0 || dice.IntN(20) == 0}
		if !where.Root && dice.IntN(3) == 0 { // else below the last one
			where.Parent = g.list[dice.IntN(len(g.list))].ID
		}
		m := conversation.Message{ID: ident.New[ident.MessageID](), Role: conversation.User, State: conversation.Completed, Content: "m",
			Blocks: json.RawMessage(`["` + strings.Repeat("x", size()) + `"]`), CreatedAt: now, UpdatedAt: now}
		_, put, err := s.Append(t.Context(), g.id, where, func(conversation.Spot) (conversation.Entry, event.Change, error) {
			return conversation.Entry{Messages: []conversation.Message{m}}, event.NewChange(ident.System(""), now), nil
		})
		if err != nil {
			t.Fatal(err)
		}
		g.list = append(g.list, put.Messages[0])
		g.index[m.ID] = put.Messages[0]
	}
	return g
}

// page is what a page of the path to a leaf is, told without any SQL: at is the depth of the cursor, 0 for none.
func (g *tree) page(leaf ident.MessageID, ascending bool, at int64, limit int) (ids []ident.MessageID, next string) {
	var path []conversation.Message
	for id := leaf; id != ""; id = g.index[id].Parent {
		path = append(path, g.index[id])
	}
	depth := int64(len(path))
	if ascending {
		slices.Reverse(path)
	}
	bytes := 0
	for i, m := range path {
		here := depth - int64(i)
		if ascending {
			here = int64(i) + 1
		}
		if ascending && here <= at || !ascending && at > 0 && at <= depth && here >= at {
			continue
		}
		bytes += len(m.Content) + len(m.Blocks)
		if len(ids) == limit || len(ids) > 0 && bytes > pageBytes {
			break
		}
		ids, next = append(ids, m.ID), ""
		if i < len(path)-1 {
			next = formatCursor(pageCursor{Kind: "path", Ascending: ascending, Leaf: leaf, At: here})
		}
	}
	return ids, next
}

// Every page of every path is what the tree says, wherever it begins and ends; on SQLite the statement for what lies on the
// leaf's own branch and the one that walks say the same.
func TestPagesOfPaths(t *testing.T) {
	for engine, open := range map[string]func(*testing.T) *DB{
		"sqlite":   func(t *testing.T) *DB { return tenantFiles(t)(t) },
		"postgres": func(t *testing.T) *DB { return tenantSchemas(t)(t) },
	} {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			dice := rand.New(rand.NewPCG(seed, 1))
			db := open(t)
			small := func() int { return dice.IntN(5) }
			own, walked := 0, 0
			for range 3 {
				one, other := comparePages(t, db, dice, grow(t, db, dice, 16, small), 80)
				own, walked = own+one, walked+other
			}
			if own == 0 || walked == 0 {
				t.Errorf("%d pages on one branch, %d across forks: nothing was compared", own, walked)
			}
			long := func() int { return []int{10, 1_300_000, 2_100_000, 4_300_000}[dice.IntN(4)] }
			comparePages(t, db, dice, grow(t, db, dice, 4, long), 8)
		})
	}
}

// comparePages returns how many of the pages lay on the leaf's own branch, and how many did not.
func comparePages(t *testing.T, db *DB, dice *rand.Rand, g *tree, times int) (own, walked int) {
	t.Helper()
	s := NewTenantStore(db, nil)
	active := g.list[len(g.list)-1].ID // where the last one was put
	for range times {
		leaf := g.list[dice.IntN(len(g.list))]
		ascending, limit, at := dice.IntN(2) == 0, 1+dice.IntN(12), dice.Int64N(leaf.Depth+4)
		q := conversation.MessageQuery{Leaf: leaf.ID, Ascending: ascending, Limit: limit}
		if leaf.ID == active && dice.IntN(2) == 0 {
			q.Leaf = "" // which is the active one
		}
		from := pageCursor{Kind: "path", Ascending: ascending, Leaf: leaf.ID, At: at}
		if at > 0 {
			q.Cursor = formatCursor(from)
		}
		list, next, err := s.ListMessages(t.Context(), g.id, q)
		if err != nil {
			t.Fatal(err)
		}
		ids, then := g.page(leaf.ID, ascending, at, limit)
		if got := idsOf(list); !slices.Equal(got, ids) || next != then {
			t.Fatalf("leaf at %d of branch %d, ascending %v, from %d, limit %d:\ngot  %v %s\nwant %v %s",
				leaf.Depth, leaf.Branch, ascending, at, limit, got, next, ids, then)
		}
		var fork int64
		var one, other messagePage
		if err := db.Read(t.Context(), func(b *Batch) {
			b.One([]any{&fork}, `SELECT fork_depth FROM branches WHERE conversation_id = ? AND branch = ?`, g.id, leaf.Branch)
			if b.Dialect() != SQLite {
				return
			}
			b.Query(one.take, pageOfOwn(ascending), g.id, leaf.ID, at, limit)
			b.Query(other.take, pageOfPath(SQLite, ascending), g.id, leaf.ID, at, limit)
		}); err != nil {
			t.Fatal(err)
		}
		if from.onOwnBranch(leaf.Depth, fork, limit) {
			own++
			if !slices.Equal(idsOf(one.list), idsOf(other.list)) {
				t.Fatalf("leaf at %d, fork at %d, ascending %v, from %d, limit %d: %v, by walking %v", leaf.Depth, fork, ascending, at,
					limit, idsOf(one.list), idsOf(other.list))
			}
		} else {
			walked++
		}
	}
	for _, ascending := range []bool{false, true} {
		q := conversation.MessageQuery{Leaf: ident.New[ident.MessageID](), Ascending: ascending, Limit: 3}
		if _, _, err := s.ListMessages(t.Context(), g.id, q); !fault.Is(err, fault.NotFound) {
			t.Errorf("the path to nothing: %v", err)
		}
		q.Cursor = formatCursor(pageCursor{Kind: "path", Ascending: ascending, Leaf: q.Leaf, At: 2})
		if _, _, err := s.ListMessages(t.Context(), g.id, q); !fault.Is(err, fault.Invalid) {
			t.Errorf("more of the path to nothing: %v", err)
		}
		if _, _, err := s.ListMessages(t.Context(), ident.New[ident.ConversationID](), conversation.MessageQuery{Leaf: active, Ascending: ascending,
			Limit: 3}); !fault.Is(err, fault.NotFound) {
			t.Errorf("a path in another conversation: %v", err)
		}
	}
	return own, walked
}

func idsOf(list []conversation.Message) []ident.MessageID {
	ids := make([]ident.MessageID, 0, len(list))
	for _, m := range list {
		ids = append(ids, m.ID)
	}
	return ids
}
