package sqlstore

import (
	"fmt"
	"math/rand"
	"strings"
	"testing"
	"time"

	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/ident"
)

// corpus makes messages of words whose frequencies follow Zipf's law, as in any language.
type corpus struct {
	r *rand.Rand
	z *rand.Zipf
}

func newCorpus() corpus {
	r := rand.New(rand.NewSource(1))
	return corpus{r: r, z: rand.NewZipf(r, 1.07, 1, 19_999)}
}

// word names the word of a rank; it has letters only, and no endings that a stemmer cuts off.
func word(rank int) string {
	const consonants, vowels = "bdfgklmnprtvz", "aiou"
	out := []byte{}
	for n := rank; ; n /= len(consonants) * len(vowels) {
		k := n % (len(consonants) * len(vowels))
		out = append(out, consonants[k/len(vowels)], vowels[k%len(vowels)])
		if n < len(consonants)*len(vowels) {
			return string(out) + "x"
		}
	}
}

func (c corpus) text() string {
	n := 25 + c.r.Intn(30)
	parts := make([]string, n)
	for i := range parts {
		parts[i] = word(int(c.z.Uint64()))
	}
	return strings.Join(parts, " ")
}

// fill writes conversations of twenty messages each.
func fill(tb testing.TB, db *DB, messages int) {
	tb.Helper()
	c := newCorpus()
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	const per = 20
	write := func(fill func(b *Batch)) {
		if err := db.Write(tb.Context(), func(tx *Tx) error { return tx.Run(fill) }); err != nil {
			tb.Fatal(err)
		}
	}
	for done := 0; done < messages; {
		write(func(b *Batch) {
			for range min(50, (messages-done+per-1)/per) {
				id := ident.ConversationID(fmt.Sprintf("c%d", done))
				putConversation(b, id, "", c.text(), at)
				indexTitle(b, db.Dialect(), id, word(int(c.z.Uint64()))+" "+word(int(c.z.Uint64())))
				for i := range min(per, messages-done) {
					at = at.Add(time.Second)
					m := ident.MessageID(fmt.Sprintf("m%d", done))
					role := []conversation.Role{conversation.User, conversation.Assistant}[i%2]
					text := c.text()
					putMessage(b, m, id, i+1, role, text, at)
					indexMessage(b, db.Dialect(), m, text)
					done++
				}
			}
		})
	}
	if db.Dialect() == Postgres {
		write(func(b *Batch) { b.Exec(`ANALYZE message_words`) })
	}
}

// putConversation and putMessage write what the index needs, and nothing of the log.
func putConversation(b *Batch, id ident.ConversationID, project ident.ProjectID, title string, at time.Time) {
	b.Exec(`INSERT INTO conversations (id, project_id, title, title_folded, title_by_hand, description, status,
		importance_level, tags, system, provider, model, settings, creator_id, creator_name, message_count, leaf_id,
		branch_count, version, created_at, updated_at)
		VALUES (?, ?, ?, '', 0, '', 'active', 5, '[]', '', '', '', '{}', '', '', 0, '', 1, 1, ?, ?)`,
		id, optional(project), title, ident.Micros(at), ident.Micros(at))
}

func putMessage(b *Batch, id ident.MessageID, conv ident.ConversationID, depth int, role conversation.Role, text string,
	at time.Time) {
	b.Exec(`INSERT INTO messages (id, conversation_id, parent_id, turn_id, branch, depth, role, content, content_length,
		state, author_id, author_name, provider, model, stop_reason, input_tokens, output_tokens, cache_read_input_tokens,
		cache_creation_input_tokens, cost_microusd, first_token_ms, latency_ms, error_code, error_detail, tokens,
		tokens_up_to, prefix_hash, created_at, updated_at)
		VALUES (?, ?, '', '', 1, ?, ?, ?, ?, 'completed', '', '', '', '', '', 0, 0, 0, 0, 0, 0, 0, '', '', 0, 0, '', ?, ?)`,
		id, conv, depth, role, text, len(text), ident.Micros(at), ident.Micros(at))
}

// searchService asks in the way doors do.
func searchService(db *DB) func(tb testing.TB, in conversation.SearchInput) ([]conversation.Hit, string) {
	owner := ident.New[ident.AccountID]()
	s := conversation.New(NewTenantStore(db, nil), nil, nil, owner, nil)
	return func(tb testing.TB, in conversation.SearchInput) ([]conversation.Hit, string) {
		tb.Helper()
		hits, next, err := s.Search(tb.Context(), ident.Actor{Account: owner}, in)
		if err != nil {
			tb.Fatal(err)
		}
		return hits, next
	}
}

func BenchmarkSearch(b *testing.B) {
	const messages = 100_000
	classes := []struct{ name, query string }{
		{"common", word(0)},
		{"medium", word(150)},
		{"rare", word(15_000)},
		{"two words", word(2) + " " + word(150)},
		{"none", "qwertyq"},
		{"question", strings.Join([]string{"What", word(0), word(1), word(3), word(9), "about the", word(700), word(40), "and", word(9000), word(14) + "?"}, " ")},
	}
	for _, e := range []struct {
		name string
		open func(testing.TB) func(testing.TB) *DB
	}{{"sqlite", tenantFiles}, {"postgres", tenantSchemas}} {
		b.Run(e.name, func(b *testing.B) {
			db := e.open(b)(b)
			start := time.Now()
			fill(b, db, messages)
			b.Logf("%v for each message", time.Since(start)/messages)
			ask := searchService(db)
			for _, newest := range []bool{false, true} {
				for _, c := range classes {
					b.Run(fmt.Sprintf("%s/newest=%t", c.name, newest), func(b *testing.B) {
						found := 0
						for b.Loop() {
							hits, _ := ask(b, conversation.SearchInput{Text: c.query, Newest: newest})
							found = len(hits)
						}
						b.ReportMetric(float64(found), "hits")
						b.ReportMetric(b.Elapsed().Seconds()*1000/float64(b.N), "ms/search")
					})
				}
			}
		})
	}
}
