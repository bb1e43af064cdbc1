package words

import (
	"html"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"
)

func scorer(t interface{ Fatalf(string, ...any) }, query string) *Scorer {
	q, err := ParseQuery(query)
	if err != nil {
		t.Fatalf("%v", err)
	}
	counts := make([]int64, len(q.Any))
	for i := range counts {
		counts[i] = 10
	}
	return NewScorer(q.Any, counts, 1000)
}

func TestSnippet(t *testing.T) {
	long := strings.Repeat("lorem ipsum dolor ", 20)
	tests := []struct {
		name, query, text string
		limit             int
		want              string
	}{
		{"whole text", "cat", "A cat & <dog>.", 50, "A <mark>cat</mark> &amp; &lt;dog&gt;."},
		{"other forms", "running", "He runs; the runner ran a run.", 50, "He <mark>runs</mark>; the runner ran a <mark>run</mark>."},
		{"accents and case", "etes grosse", "L'ÉTÉS, die Größe", 50, "L&#39;<mark>ÉTÉS</mark>, die <mark>Größe</mark>"},
		{"decomposed text", "été", "un e\u0301te\u0301.", 50, "un <mark>e\u0301te\u0301</mark>."},
		{"prefix", "data*", "databases and data", 50, "<mark>databases</mark> and <mark>data</mark>"},
		{"phrases only as a whole", `"new york"`, "york new new york", 50, "york new <mark>new</mark> <mark>york</mark>"},
		{"Chinese", "北京", "我在北京。北方", 50, "我在<mark>北京</mark>。北方"},
		{"overlapping pairs are one mark", "東京都", "ここは東京都です", 50, "ここは<mark>東京都</mark>です"},
		{"the middle of a long text", "needle", long + "needle " + long, 40, "…dolor <mark>needle</mark> lorem ipsum dolor…"},
		{"the end of a long text", "needle", long + "needle.", 30, "…lorem ipsum dolor <mark>needle</mark>."},
		{"no match", "needle", long, 20, "lorem ipsum dolor…"},
		{"the place with most of the question", "red blue", "red " + long + "blue red green " + long, 20, "…<mark>blue</mark> <mark>red</mark> green…"},
		{"one long word", "needle", strings.Repeat("x", 100), 10, strings.Repeat("x", 10) + "…"},
		{"a match longer than the limit", strings.Repeat("x", 100), "a " + strings.Repeat("x", 100) + " b", 10, "…<mark>" + strings.Repeat("x", 10) + "</mark>…"},
		{"nothing", "needle", "", 10, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := scorer(t, tt.query).Snippet(tt.text, tt.limit); got != tt.want {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
		})
	}
}

// checkSnippet: without marks and escapes it is a part of the text, within the limit, and marks are paired.
func checkSnippet(t interface{ Fatalf(string, ...any) }, query, text string, limit int) {
	q, err := ParseQuery(query)
	if err != nil {
		return
	}
	s := NewScorer(q.Any, nil, 100)
	got := s.Snippet(text, limit)
	if s.Score(text) > 0 != strings.Contains(got, "<mark>") {
		t.Fatalf("score %f, snippet %q", s.Score(text), got)
	}
	open := false
	for rest := got; ; {
		i := strings.IndexByte(rest, '<')
		if i < 0 {
			break
		}
		want := map[bool]string{false: "<mark>", true: "</mark>"}[open]
		if !strings.HasPrefix(rest[i:], want) {
			t.Fatalf("marks are not paired in %q", got)
		}
		open, rest = !open, rest[i+1:]
	}
	if open {
		t.Fatalf("an open mark in %q", got)
	}
	plain := html.UnescapeString(strings.NewReplacer("<mark>", "", "</mark>", "").Replace(got))
	if strings.Contains(text, plain) && utf8.RuneCountInString(plain) <= limit {
		return // an ellipsis may be the text's own
	}
	plain = strings.TrimSuffix(plain, "…")
	if !strings.Contains(text, plain) {
		plain = strings.TrimPrefix(plain, "…")
	}
	if n := utf8.RuneCountInString(strings.TrimPrefix(plain, "…")); !strings.Contains(text, plain) || n > limit {
		t.Fatalf("%q is no part of %q, or longer than %d", plain, text, limit)
	}
}

func TestSnippetIsAPartOfTheText(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		checkSnippet(t, anyText().Draw(t, "query"), anyText().Draw(t, "text"), rapid.IntRange(1, 60).Draw(t, "limit"))
	})
}

func FuzzSnippet(f *testing.F) {
	f.Add("cat \"東京 a\"", "the <cat> & 東京 a", 8)
	f.Fuzz(func(t *testing.T, query, text string, limit int) {
		checkSnippet(t, query, text, 1+max(0, limit)%100)
	})
}

func TestScore(t *testing.T) {
	tests := []struct{ name, query, better, worse string }{
		{"the word itself before another form", "tests", "all tests here", "all test here"},
		{"more of the question", "red fox", "a red fox", "a red red red cat"},
		{"the shorter text", "fox", "a fox", "a fox " + strings.Repeat("and so on ", 100)},
		{"words together before words apart", "red fox", "one red fox went by and he was happy about all that was here", "one fox went by and he was happy about all that was here red"},
		{"a phrase", `"red fox"`, "the red fox", "the fox red"},
		{"pairs of characters", "東京都庁", "東京都庁", "東京都"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := scorer(t, tt.query)
			if b, w := s.Score(tt.better), s.Score(tt.worse); b <= w {
				t.Errorf("%f for %q, %f for %q", b, tt.better, w, tt.worse)
			}
		})
	}
	t.Run("rare words weigh more", func(t *testing.T) {
		s := NewScorer([]Clause{{{Text: "rare"}}, {{Text: "common"}}}, []int64{2, 900}, 1000)
		if r, c := s.Score("a rare thing"), s.Score("a common thing"); r <= c || c <= 0 {
			t.Errorf("%f and %f", r, c)
		}
	})
}

func TestStem(t *testing.T) {
	for _, group := range [][]string{
		{"connect", "connected", "connecting", "connection", "connections"},
		{"книга", "книги", "книгу", "книгами"},
		{"كتاب", "الكتاب", "بالكتاب", "والكتاب"},
		{"run", "runs", "running"},
	} {
		t.Run(group[0], func(t *testing.T) {
			for _, w := range group {
				if got := Stem(w); got != Stem(group[0]) {
					t.Errorf("Stem(%q) = %q, want %q", w, got, Stem(group[0]))
				}
			}
		})
	}
}

// The scorer goes by it.
func TestWordsBeginLikeTheirStems(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := rapid.OneOf(rapid.StringMatching(`[a-z]{1,12}(ing|ied|s|es|ly|ation)?`),
			rapid.StringMatching(`[a-z]{1,6}(sses|ies|eed|ational|tional|ency|ancy|ably|ator|izer|ization|alism|bility|ably|bly|ogy|`+
				`fulness|ousness|iveness|ivity|lessly|icate|icity|ical|ative|ement|able|ible|ness)(ed|ing|ly|s|edly|ingly)?`),
			rapid.SampledFrom([]string{"dying", "lying", "tying", "skies", "skis", "idly", "ugly", "early", "only", "singly", "ability"})).Draw(t, "word")
		if s := Stem(w); !strings.HasPrefix(w, kept(s)) {
			t.Fatalf("Stem(%q) = %q", w, s)
		}
	})
}

func BenchmarkScore(b *testing.B) {
	s := scorer(b, "What did we decide about the database migration?")
	text := strings.Repeat("We talked for a while and then the decision about databases was to migrate them later. ", 100)
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		s.Score(text)
	}
}

func BenchmarkIndex(b *testing.B) {
	text := strings.Repeat("We talked for a while and then the decision about databases was to migrate them later. ", 10)
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		Index(text)
	}
}
