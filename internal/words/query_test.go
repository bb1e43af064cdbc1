package words

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"
)

// show writes clauses shortly: stems behind a slash, phrases in brackets.
func show(clauses []Clause) string {
	var parts []string
	for _, c := range clauses {
		var terms []string
		for _, t := range c {
			s := t.Text
			if t.Stem != "" && t.Stem != t.Text {
				s += "/" + t.Stem
			}
			if t.Prefix {
				s += "*"
			}
			terms = append(terms, s)
		}
		if len(c) > 1 || c[0].Stem == "" && !c[0].Prefix {
			parts = append(parts, "["+strings.Join(terms, " ")+"]")
		} else {
			parts = append(parts, terms[0])
		}
	}
	return strings.Join(parts, " ")
}

func TestParseQuery(t *testing.T) {
	tests := []struct {
		name          string
		text          string
		all, any, not string
	}{
		{"words with their stems", "Running tests", "running/run tests/test", "=", ""},
		{"a question", "What did we decide about the database?", "what did we decide/decid about the database/databas", "=", ""},
		{"a phrase is exact", `"data models" here`, "[data models] here", "=", ""},
		{"quotes of other keyboards", "„großer Test“ «un été» “x y”", "[grosser test] [un ete] [x y]", "=", ""},
		{"a quoted word has no other forms", `"running"`, "[running]", "=", ""},
		{"an open quote is punctuation", `a 5" disk`, "a 5 disk", "=", ""},
		{"prefixes", "data* \"hello wor*\"", "data* [hello wor*]", "=", ""},
		{"one letter is no prefix", "d* \"plan b*\"", "d [plan b]", "=", ""},
		{"emphasis is no prefix", "**bold** *it* 2*3", "bold it 2 3", "=", ""},
		{"exclusion", `go -games -"old news" -well-known`, "go", "=", "[games] [old news] [well known]"},
		{"dashes are not exclusion", "a - b -- c well-known", "a b c well known", "=", ""},
		{"repeated words count once", "the cat the dog THE", "the cat dog", "=", ""},
		{"articles before an apostrophe are left out", "l'été d’Anna", "ete anna", "=", ""},
		{"endings after an apostrophe belong to the word", "don't Anna's", "dont annas/anna", "=", ""},
		{"Chinese is a phrase, and pairs", "北京大学 城", "[北 京 大 学] [城]", "[北 京] [京 大] [大 学] [城]", ""},
		{"Japanese among Latin", "東京tower -大阪", "[東 京] tower", "[東 京] tower", "[大 阪]"},
		{"Russian", "книгами", "книгами/книг", "=", ""},
		{"Arabic", "الكتاب", "الكتاب/كتاب", "=", ""},
		{"emoji", "👍 🎉🎉", "[👍] [🎉 🎉]", "=", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			q, err := ParseQuery(tt.text)
			if err != nil {
				t.Fatal(err)
			}
			if tt.any == "=" {
				tt.any = tt.all
			}
			got := fmt.Sprintf("%s | %s | %s", show(q.All), show(q.Any), show(q.Not))
			if want := fmt.Sprintf("%s | %s | %s", tt.all, tt.any, tt.not); got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}
}

func TestParseQueryRefuses(t *testing.T) {
	for text, want := range map[string]error{
		"": ErrEmpty, " \t": ErrEmpty, `"" - -- * ?!`: ErrEmpty, "-word": ErrOnlyNot, `-"a b" -c`: ErrOnlyNot,
	} {
		t.Run(text, func(t *testing.T) {
			if _, err := ParseQuery(text); !errors.Is(err, want) {
				t.Errorf("got %v, want %v", err, want)
			}
		})
	}
}

func TestParseQueryIsBounded(t *testing.T) {
	var b strings.Builder
	for i := range 10_000 {
		fmt.Fprintf(&b, "w%d ", i)
	}
	for _, text := range []string{b.String(), strings.Repeat("北京", 5000), `"` + b.String() + `"`, strings.Repeat("-a ", 1000) + "b"} {
		q, err := ParseQuery(text)
		if err != nil && !errors.Is(err, ErrOnlyNot) {
			t.Fatal(err)
		}
		terms := 0
		for _, c := range append(q.All, q.Not...) {
			terms += len(c)
		}
		if terms > MaxTerms || len(q.Any) > MaxTerms {
			t.Errorf("%d terms, %d loose clauses", terms, len(q.Any))
		}
	}
}

func checkQuery(t interface{ Fatalf(string, ...any) }, text string) {
	q, err := ParseQuery(text)
	if err != nil {
		if len(q.All)+len(q.Any)+len(q.Not) > 0 {
			t.Fatalf("an error and a query")
		}
		return
	}
	if len(q.All) == 0 || len(q.Any) == 0 {
		t.Fatalf("nothing to look for in %q", text)
	}
	for _, list := range [][]Clause{q.All, q.Any, q.Not} {
		for _, c := range list {
			for i, term := range c {
				if term.Text == "" || !utf8.ValidString(term.Text) || utf8.RuneCountInString(term.Text) > MaxRunes {
					t.Fatalf("term %q", term.Text)
				}
				if len(c) > 1 && (term.Stem != "" || term.Prefix && i < len(c)-1) {
					t.Fatalf("phrase %v", c)
				}
			}
		}
	}
}

func TestParseQueryAlwaysGivesSoundQueries(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) { checkQuery(t, anyText().Draw(t, "text")) })
}

func FuzzParseQuery(f *testing.F) {
	f.Add(`what's "the plan" -b pre* 東京 l'été`)
	f.Fuzz(func(t *testing.T, text string) { checkQuery(t, text) })
}

// anyText mixes scripts, punctuation of the query language, and what rapid makes up itself.
func anyText() *rapid.Generator[string] {
	piece := rapid.OneOf(
		rapid.SampledFrom([]string{"the", "Running", "l'été", "don't", "ß", "Größe", "東京", "タワー", "كتاب", "книга", "👍🏽",
			"👨‍👩‍👧", "e\u0301", "ﬁ", "½", "<b>", "&amp;", "\"", "-", "*", " ", " ", "\n", "…", "a\xff", "ไทย", "हिन्दी", "한국어"}),
		rapid.String(), rapid.StringMatching(`[a-z]{1,9} `))
	return rapid.Map(rapid.SliceOfN(piece, 0, 40), func(p []string) string { return strings.Join(p, "") })
}

func TestIndexIsBounded(t *testing.T) {
	t.Run("places", func(t *testing.T) {
		var b strings.Builder
		for i := range 60_000 {
			fmt.Fprintf(&b, "w%d the ", i)
		}
		d := Index(b.String())
		if len(d.Words) != MaxPlaces {
			t.Errorf("%d words with a place", len(d.Words))
		}
		the := 0
		for _, w := range d.Words {
			if w == "the" {
				the++
			}
		}
		if the != MaxRepeat {
			t.Errorf("a word stands in %d places", the)
		}
		if n := MaxWords/2 - (MaxPlaces+1)/2; len(d.More) < n-1 || len(d.More) > n+1 {
			t.Errorf("%d words without a place", len(d.More))
		}
	})
	t.Run("long words are cut", func(t *testing.T) {
		d := Index(strings.Repeat("x", 100_000) + " " + strings.Repeat("é", 1000) + strings.Repeat("ﷺ", 100))
		if len(d.Words) != 2 || d.Words[0] != strings.Repeat("x", MaxRunes) || d.Words[1] != strings.Repeat("e", MaxRunes) {
			t.Errorf("%q", d.Words)
		}
	})
	t.Run("bytes", func(t *testing.T) {
		var b strings.Builder
		for i := range 40_000 {
			fmt.Fprintf(&b, "%c%d%s ", 'あ'+'ก'-'あ', i, strings.Repeat("ж", 60))
		}
		size := 0
		d := Index(b.String())
		for _, w := range append(append(d.Words, d.More...), d.Stems...) {
			size += len(w) + 6
		}
		if size > 1<<20 {
			t.Errorf("%d bytes", size)
		}
	})
}

// What a query finds in a text must not depend on how the text is written.
func TestWordsFindThemselves(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := anyText().Draw(t, "text")
		for _, w := range Index(text).Words {
			if w != "" && NewScorer([]Clause{{{Text: w}}}, []int64{1}, 10).Score(text) <= 0 {
				t.Fatalf("%q is a word of %q and does not match", w, text)
			}
		}
	})
}
