package sqlstore

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/project"
	"claude-memory-backend/internal/words"
)

// engines opens a fresh tenant on each engine.
func engines(t *testing.T) map[string]*DB {
	t.Helper()
	return map[string]*DB{"sqlite": tenantFiles(t)(t), "postgres": tenantSchemas(t)(t)}
}

// library is a small collection in many languages. Messages are named m1, m2, … in the order of their creation.
type library struct {
	home    ident.ProjectID
	texts   []string
	roles   []conversation.Role
	started time.Time
}

func newLibrary() *library {
	l := &library{home: ident.New[ident.ProjectID](), started: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), texts: []string{
		1:  "The quick brown fox jumps over the lazy dog",
		2:  "A fox is running, and the dogs run after it",
		3:  "We decided to migrate the database on Monday; migrations are risky",
		4:  "Die Größe der Häuser in Düsseldorf: eine Straße weiter",
		5:  "L'été à Paris, c'est l'œuvre d'une vie",
		6:  "Мы читали интересные книги о Москве и ёлках",
		7:  "ذهب أحمد إلى المدرسة ومعه الكتاب",
		8:  "我昨天在北京大学学习中文。",
		9:  "東京タワーへ行きました。京都も好きです。",
		10: "Party 🎉🎉 tonight 👍🏽 don't be late",
		11: "brown quick fox, in another order: new york, York New",
		12: "error_code = E1234 in 10.0.0.1:8080 (see https://example.org/a-b)",
		13: "한국어를 배웁니다",
		14: "ฉันรักภาษาไทย",
		15: "run",
		16: strings.Repeat("filler words go on ", 5000) + "needle at the very end",
		17: strings.Repeat("echo ", 400) + "echo canyon",
		18: "the the the the",
		19: "Ο Οδυσσέας και η Πηνελόπη",
		20: "हिन्दी में लिखा हुआ",
	}}
	for i := range l.texts {
		l.roles = append(l.roles, []conversation.Role{conversation.User, conversation.Assistant, conversation.SystemSay}[i%3])
	}
	return l
}

// at is when a message was written: a day after the one before.
func (l *library) at(i int) time.Time { return l.started.AddDate(0, 0, i) }

func (l *library) message(i int) ident.MessageID { return ident.MessageID(fmt.Sprintf("m%d", i)) }

// shelve writes the library: odd messages are in a conversation without project, even ones in one of project home.
func (l *library) shelve(t *testing.T, db *DB) {
	t.Helper()
	s := NewTenantStore(db, nil)
	if err := s.InsertProject(t.Context(), project.Project{ID: l.home, Details: project.Details{Name: "home"}}, event.Change{}); err != nil {
		t.Fatal(err)
	}
	put(t, db, func(b *Batch) {
		for i, title := range []string{"Fox tales from the database", "Été: größere Pläne"} {
			id := ident.ConversationID(fmt.Sprintf("c%d", i+1))
			putConversation(b, id, []ident.ProjectID{"", l.home}[i], title, l.at(i))
			indexTitle(b, db.Dialect(), id, "what it was called before")
			indexTitle(b, db.Dialect(), id, title)
		}
		for i := 1; i < len(l.texts); i++ {
			conv := ident.ConversationID(fmt.Sprintf("c%d", 2-i%2))
			putMessage(b, l.message(i), conv, i, l.roles[i], l.texts[i], l.at(i))
			indexMessage(b, db.Dialect(), l.message(i), "a first version that is replaced: zebra")
			indexMessage(b, db.Dialect(), l.message(i), l.texts[i])
		}
	})
}

func put(t testing.TB, db *DB, fill func(b *Batch)) {
	t.Helper()
	if err := db.Write(t.Context(), func(tx *Tx) error { return tx.Commit(fill) }); err != nil {
		t.Fatal(err)
	}
}

// ask parses a query as a door's would be and names what is found, newest first.
func ask(t *testing.T, db *DB, query string, loose bool, c conversation.Candidates) (messages, titles string) {
	t.Helper()
	q, err := words.ParseQuery(query)
	if err != nil {
		t.Fatal(err)
	}
	c.Match = words.Match{All: q.All, Not: q.Not}
	if loose {
		c.Match = words.Match{Any: q.Any, Not: q.Not}
	}
	if c.Limit == 0 {
		c.Limit = 100
	}
	found, err := NewTenantStore(db, nil).Ask(t.Context(), conversation.Question{Messages: []conversation.Candidates{c}, Titles: &c})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range found.Found {
		messages += " " + string(d.MessageID)
	}
	for _, d := range found.FoundTitles {
		titles += " " + string(d.ConversationID)
	}
	return strings.TrimSpace(messages), strings.TrimSpace(titles)
}

func frequencies(t *testing.T, db *DB, clauses []words.Clause) conversation.Frequencies {
	t.Helper()
	f, err := NewTenantStore(db, nil).Ask(t.Context(), conversation.Question{Count: true, Clauses: clauses})
	if err != nil {
		t.Fatal(err)
	}
	return f.Frequencies
}

func TestBothEnginesFindTheSame(t *testing.T) {
	l := newLibrary()
	tests := []struct {
		name, query      string
		loose            bool
		narrow           conversation.Candidates
		messages, titles string
	}{
		{name: "a word", query: "fox", messages: "m11 m2 m1", titles: "c1"},
		{name: "all of two words", query: "fox dog", messages: "m2 m1"},
		{name: "any of two words", query: "fox needle", loose: true, messages: "m16 m11 m2 m1", titles: "c1"},
		{name: "other forms from the stem", query: "run", messages: "m15 m2"},
		{name: "other forms from a form", query: "running", messages: "m15 m2"},
		{name: "forms that differ from both", query: "migrated", messages: "m3"},
		{name: "quoted words have no other forms", query: `"running"`, messages: "m2"},
		{name: "a phrase", query: `"quick brown fox"`, messages: "m1"},
		{name: "a phrase in the other order", query: `"new york"`, messages: "m11"},
		{name: "a phrase that nobody said", query: `"brown dog"`},
		{name: "a phrase with a prefix", query: `"quick bro*"`, messages: "m1"},
		{name: "a prefix", query: "migr*", messages: "m3"},
		{name: "a short prefix", query: "do*", messages: "m10 m2 m1"},
		{name: "a prefix with marks inside", query: "dus*", messages: "m4"},
		{name: "exclusion", query: "fox -lazy", messages: "m11 m2", titles: "c1"},
		{name: "exclusion of a phrase", query: `fox -"brown fox"`, messages: "m11 m2", titles: "c1"},
		{name: "exclusion is exact", query: "fox -dog", messages: "m11 m2", titles: "c1"},
		{name: "exclusion among any", query: "fox needle -york -tales", loose: true, messages: "m16 m2 m1"},
		{name: "nothing", query: "giraffe"},
		{name: "what was indexed before", query: "zebra"},
		{name: "a title that was replaced", query: "called"},
		{name: "German", query: "GROSSE strasse", messages: "m4"},
		{name: "German umlauts", query: "hauser", messages: "m4"},
		{name: "French", query: "l'ete", messages: "m5", titles: "c2"},
		{name: "French ligature", query: "oeuvre", messages: "m5"},
		{name: "Russian forms", query: "книга", messages: "m6"},
		{name: "Russian yo", query: "елка", messages: "m6"},
		{name: "Arabic with and without article", query: "كتاب", messages: "m7"},
		{name: "Arabic hamza", query: "احمد", messages: "m7"},
		{name: "Chinese", query: "北京大学", messages: "m8"},
		{name: "Chinese in another order", query: "大北"},
		{name: "Chinese, any pair", query: "北京大楼", loose: true, messages: "m8"},
		{name: "Japanese", query: "京都", messages: "m9"},
		{name: "a pair across words", query: "東京", messages: "m9"},
		{name: "half-width Katakana", query: "ﾀﾜｰ", messages: "m9"},
		{name: "Korean", query: "한국*", messages: "m13"},
		{name: "Thai", query: "ภาษา", messages: "m14"},
		{name: "Hindi", query: "हिन्दी", messages: "m20"},
		{name: "Greek", query: "ΟΔΥΣΣΕΑΣ", messages: "m19"},
		{name: "emoji", query: "🎉", messages: "m10"},
		{name: "emoji with another tone", query: "👍🏿", messages: "m10"},
		{name: "apostrophes", query: "dont", messages: "m10"},
		{name: "codes and addresses", query: "10.0.0.1 e1234 https://example.org", messages: "m12"},
		{name: "the end of a long message", query: "needle", messages: "m16"},
		{name: "no phrase there", query: `"needle at"`},
		{name: "a word that is repeated very often", query: `"echo canyon"`},
		{name: "and its neighbour alone", query: "canyon", messages: "m17"},
		{name: "very common words", query: "the", messages: "m18 m16 m3 m2 m1", titles: "c1"},
		{name: "quotes and operators of the engines", query: `fox' OR & | ! : * ( ) ^ NEAR \ ~ "" {words}`, loose: true,
			messages: "m16 m11 m2 m1", titles: "c1"},
		{name: "role", query: "fox", narrow: conversation.Candidates{Role: conversation.SystemSay}, messages: "m11 m2"},
		{name: "a role is no word", query: "user assistant system", loose: true},
		{name: "project", query: "fox", narrow: conversation.Candidates{Project: l.home}, messages: "m2"},
		{name: "project of a title", query: "plane", narrow: conversation.Candidates{Project: l.home}, titles: "c2"},
		{name: "from is inclusive", query: "fox", narrow: conversation.Candidates{From: l.at(2)}, messages: "m11 m2"},
		{name: "to is exclusive", query: "fox", narrow: conversation.Candidates{To: l.at(2)}, messages: "m1", titles: "c1"},
		{name: "limit", query: "fox", narrow: conversation.Candidates{Limit: 1}, messages: "m11", titles: "c1"},
		{name: "before", query: "fox", narrow: conversation.Candidates{Before: 11}, messages: "m2 m1", titles: "c1"},
		{name: "text", query: "fox", narrow: conversation.Candidates{Text: 60}, messages: "m11 m2", titles: "c1"},
		{name: "all filters", query: "fox dog", narrow: conversation.Candidates{Role: conversation.SystemSay, Project: l.home,
			From: l.at(1), To: l.at(3), Limit: 5, Before: 10}, messages: "m2"},
	}
	dbs := engines(t)
	for _, db := range dbs {
		l.shelve(t, db)
	}
	for _, tt := range tests {
		for name, db := range dbs {
			t.Run(tt.name+"/"+name, func(t *testing.T) {
				messages, titles := ask(t, db, tt.query, tt.loose, tt.narrow)
				if messages != tt.messages || titles != tt.titles {
					t.Errorf("%s: found %q and %q,\nwant %q and %q", tt.query, messages, titles, tt.messages, tt.titles)
				}
			})
		}
	}
	t.Run("frequencies", func(t *testing.T) {
		q, err := words.ParseQuery(`fox running the migr* "quick brown" giraffe 北京`)
		if err != nil {
			t.Fatal(err)
		}
		for name, db := range dbs {
			got := frequencies(t, db, q.Any)
			want := conversation.Frequencies{Clauses: []int64{3, 2, 5, 1, 1, 0, 1}, Total: 20, Messages: 20, Titles: 2}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("%s: %s", name, d)
			}
		}
	})
	t.Run("several questions at once", func(t *testing.T) {
		clause := func(text string) words.Clause { return words.Clause{{Text: text, Stem: text}} }
		for _, limit := range []int{1, 2, 3, 4, 100} {
			for _, text := range []int64{1, 60, 120, 200, 1 << 20} {
				q := conversation.Question{Count: true, Clauses: []words.Clause{clause("fox"), clause("dog")}, Messages: []conversation.Candidates{
					{Match: words.Match{Any: []words.Clause{clause("fox")}}, Limit: limit, Text: text},
					{Match: words.Match{Any: []words.Clause{clause("run"), clause("the")}, Not: []words.Clause{clause("fox")}}, Limit: 7, Text: text},
				}, Titles: &conversation.Candidates{Match: words.Match{Any: []words.Clause{clause("fox")}}, Limit: 5}}
				got := map[string]conversation.Findings{}
				for name, db := range dbs {
					before := db.RoundTrips()
					f, err := NewTenantStore(db, nil).Ask(t.Context(), q)
					if err != nil {
						t.Fatal(err)
					}
					got[name] = f
					if n := db.RoundTrips() - before; name == "postgres" && n != 1 {
						t.Errorf("%d messages of %d bytes took %d round trips", limit, text, n)
					}
				}
				if d := cmp.Diff(got["sqlite"], got["postgres"]); d != "" || len(got["sqlite"].Found) == 0 {
					t.Errorf("%d messages of %d bytes: %s", limit, text, d)
				}
			}
		}
	})
	t.Run("what looked common and is rare", func(t *testing.T) {
		f := newFinding(conversation.Candidates{Match: words.Match{All: []words.Clause{{{Text: "fox", Stem: "fox"}}}}, Limit: 2}, messageWords(""))
		f.way, f.low = wayWalk, scanMax // as after a walk through the newest, had there been so many
		for f.settle(); !f.done; f.settle() {
			if err := dbs["postgres"].Read(t.Context(), func(b *Batch) { f.walk(b) }); err != nil {
				t.Fatal(err)
			}
		}
		if docs := f.ended(); !f.deep || len(docs) != 2 || docs[0].MessageID != "m11" || docs[1].MessageID != "m2" {
			t.Errorf("%+v", docs)
		}
	})
	t.Run("answers of the service", func(t *testing.T) {
		for _, in := range []conversation.SearchInput{
			{Text: "fox"}, {Text: "fox", Newest: true}, {Text: "What did we decide about the database?"},
			{Text: "the fox and the dog", Mode: conversation.MatchAny}, {Text: "été", Project: l.home}, {Text: "東京大学"},
			{Text: "needle"}, {Text: "the", Role: conversation.User}, {Text: "a fox", Newest: true, Mode: conversation.MatchAny},
		} {
			one, _ := searchService(dbs["sqlite"])(t, in)
			two, _ := searchService(dbs["postgres"])(t, in)
			if d := cmp.Diff(one, two); d != "" || len(one) == 0 {
				t.Errorf("%+v: %d hits; sqlite and postgres differ: %s", in, len(one), d)
			}
		}
	})
}

// Random questions about many messages, beyond the windows in which PostgreSQL walks.
func TestBothEnginesFindTheSameAmongMany(t *testing.T) {
	const messages = 9_000
	dbs := engines(t)
	for _, db := range dbs {
		fill(t, db, messages)
	}
	c := newCorpus()
	for i := range 60 {
		query := word(int(c.z.Uint64()))
		switch i % 6 {
		case 1:
			query += " " + word(int(c.z.Uint64()))
		case 2:
			query += " " + word(int(c.z.Uint64())) + " -" + word(3)
		case 3:
			query = query[:2] + "*"
		case 4:
			query = `"` + word(0) + " " + word(c.r.Intn(20)) + `"`
		case 5:
			query = word(0) + " " + word(1) // both nearly everywhere
		}
		narrow := conversation.Candidates{Limit: []int{1, 50, 3000, 20_000}[i%4]}
		if i%3 == 0 {
			narrow.Role = conversation.Assistant
		}
		if i%7 == 0 {
			narrow.Before = messages / 2
		}
		if i%5 == 0 {
			narrow.From, narrow.To = time.Date(2026, 1, 1, 0, 10, 0, 0, time.UTC), time.Date(2026, 1, 1, 0, 30, 0, 0, time.UTC)
		}
		t.Run(query, func(t *testing.T) {
			one, _ := ask(t, dbs["sqlite"], query, i%2 == 0, narrow)
			two, _ := ask(t, dbs["postgres"], query, i%2 == 0, narrow)
			if one != two {
				a, b := strings.Fields(one), strings.Fields(two)
				t.Errorf("%+v: %d and %d messages", narrow, len(a), len(b))
			}
		})
	}
	t.Run("frequencies", func(t *testing.T) {
		var clauses []words.Clause
		for _, rank := range []int{0, 1, 5, 50, 500, 5_000, 19_999} {
			clauses = append(clauses, words.Clause{{Text: word(rank), Stem: word(rank)}})
		}
		var got []conversation.Frequencies
		for _, name := range []string{"sqlite", "postgres"} {
			got = append(got, frequencies(t, dbs[name], clauses))
		}
		if d := cmp.Diff(got[0], got[1]); d != "" || !slices.IsSortedFunc(got[0].Clauses, func(a, b int64) int { return int(b - a) }) {
			t.Errorf("%v: %s", got[0], d)
		}
	})
}

// The index follows what the stores do.
func TestTheIndexFollowsTheStores(t *testing.T) {
	for name, db := range engines(t) {
		t.Run(name, func(t *testing.T) {
			s, look := NewTenantStore(db, nil), searchService(db)
			found := func(text string) int {
				t.Helper()
				hits, _ := look(t, conversation.SearchInput{Text: text})
				return len(hits)
			}
			now := time.Now().UTC().Truncate(time.Microsecond)
			c := conversation.Conversation{ID: ident.New[ident.ConversationID](), Version: 1, CreatedAt: now, UpdatedAt: now,
				Details: conversation.Details{Title: "about giraffes", Status: conversation.Active, Settings: []byte("{}")}}
			if err := s.InsertConversation(t.Context(), c, event.Change{}); err != nil {
				t.Fatal(err)
			}
			_, _, err := s.Append(t.Context(), c.ID, conversation.Where{}, func(conversation.Spot) (conversation.Entry, event.Change, error) {
				return conversation.Entry{Messages: []conversation.Message{{ID: ident.New[ident.MessageID](), Conversation: c.ID,
						Role: conversation.User, Content: "elephants remember", State: conversation.Completed, CreatedAt: now, UpdatedAt: now}}},
					event.Change{}, nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if found("giraffe") != 1 || found("elephant") != 1 {
				t.Errorf("%d and %d hits after writing", found("giraffe"), found("elephant"))
			}
			_, err = s.UpdateConversation(t.Context(), c.ID, func(c conversation.Conversation) (conversation.Conversation, event.Change, error) {
				c.Title = "about zebras"
				return c, event.Change{}, nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if found("giraffe") != 0 || found("zebra") != 1 {
				t.Errorf("%d and %d hits after a new title", found("giraffe"), found("zebra"))
			}
			gone := func(conversation.Conversation) (event.Change, error) { return event.Change{}, nil }
			if err := s.DeleteConversation(t.Context(), c.ID, gone); err != nil {
				t.Fatal(err)
			}
			if found("zebra") != 0 || found("elephant") != 0 {
				t.Errorf("%d and %d hits after deleting", found("zebra"), found("elephant"))
			}
			if left := rows(t, db, `SELECT count(*) FROM message_words`) + rows(t, db, `SELECT count(*) FROM title_words`); left != 0 {
				t.Errorf("%d rows of the index are left", left)
			}
		})
	}
}

func rows(t *testing.T, db *DB, sql string) (n int) {
	t.Helper()
	if err := db.Read(t.Context(), func(b *Batch) { b.One([]any{&n}, sql) }); err != nil {
		t.Fatal(err)
	}
	return n
}

// The largest and strangest texts fit into both indexes.
func TestAnyTextFitsTheIndex(t *testing.T) {
	var many strings.Builder
	for i := range 60_000 {
		fmt.Fprintf(&many, "слово%d%s ", i, strings.Repeat("ж", i%60))
	}
	texts := map[string]string{
		"empty":      "",
		"no words":   "… — !",
		"many words": many.String(),
		"one word":   strings.Repeat("x", 1<<20),
		"a million":  strings.Repeat("x ", 500_000),
		"Chinese":    strings.Repeat("我们在北京大学学习中文", 30_000),
		"marks":      strings.Repeat("e\u0301\u0323\u0302", 100_000),
		"quotes":     `'it\'s' ''' \\ " "" ~run ·user 'a':1A,2B`,
	}
	for name, db := range engines(t) {
		put(t, db, func(b *Batch) { putConversation(b, "c1", "", "", time.Now()) })
		depth := 0
		for what, text := range texts {
			t.Run(what+"/"+name, func(t *testing.T) {
				depth++
				put(t, db, func(b *Batch) {
					putMessage(b, ident.MessageID(what), "c1", depth, conversation.User, text, time.Now())
					indexMessage(b, db.Dialect(), ident.MessageID(what), text)
				})
				if more := words.Index(text).More; len(more) > 0 {
					if m, _ := ask(t, db, `"`+more[0]+`"`, false, conversation.Candidates{}); m != what {
						t.Errorf("%q finds %q", more[0], m)
					}
				}
			})
		}
	}
}

func TestPagesNeitherRepeatNorSkip(t *testing.T) {
	for name, db := range engines(t) {
		fill(t, db, 300)
		for _, in := range []conversation.SearchInput{
			{Text: word(2) + " " + word(30), Limit: 23},
			{Text: word(2) + " " + word(30), Limit: 23, Newest: true, Mode: conversation.MatchAny},
			{Text: word(40), Limit: 3},
		} {
			t.Run(fmt.Sprintf("%s/%s/%t", name, in.Text, in.Newest), func(t *testing.T) {
				whole := in
				whole.Limit = 200
				var want []conversation.Hit
				for whole.Limit = 200; ; {
					hits, next := searchService(db)(t, whole)
					want = append(want, hits...)
					if whole.Cursor = next; next == "" {
						break
					}
				}
				var got []conversation.Hit
				for page := 0; ; page++ {
					hits, next := searchService(db)(t, in)
					got = append(got, hits...)
					if in.Cursor = next; next == "" {
						break
					}
					put(t, db, func(b *Batch) { // somebody writes between the pages
						conv := ident.New[ident.ConversationID]()
						putConversation(b, conv, "", word(2), time.Now())
						indexTitle(b, db.Dialect(), conv, word(2)+" "+word(30))
						for i := range 10 {
							m := ident.New[ident.MessageID]()
							putMessage(b, m, conv, i, conversation.User, word(2)+" "+word(30)+" "+word(40), time.Now())
							indexMessage(b, db.Dialect(), m, word(2)+" "+word(30)+" "+word(40))
						}
					})
				}
				if d := cmp.Diff(want, got); d != "" {
					t.Errorf("%d hits at once, %d in pages: %s", len(want), len(got), d)
				}
			})
		}
	}
}
