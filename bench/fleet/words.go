package fleet

import (
	"math/rand/v2"
	"strings"
)

// Corpus makes text of invented words whose frequencies follow Zipf's law, as in any language.
type Corpus struct {
	r *rand.Rand
	z *rand.Zipf
}

// NewCorpus makes the same text every time.
func NewCorpus(seed uint64) *Corpus {
	r := rand.New(rand.NewPCG(seed, 0))
	return &Corpus{r, rand.NewZipf(r, 1.07, 1, 19_999)}
}

// word names the word of a rank, with letters only.
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

// Text is some thirty words.
func (c *Corpus) Text() string {
	parts := make([]string, 25+c.r.IntN(30))
	for i := range parts {
		parts[i] = word(int(c.z.Uint64()))
	}
	return strings.Join(parts, " ")
}

// Query is a search of a class: common, medium, rare, two words, none, or a question.
func (c *Corpus) Query(class string) string {
	switch class {
	case "common":
		return word(c.r.IntN(20))
	case "medium":
		return word(200 + c.r.IntN(300))
	case "rare":
		return word(8_000 + c.r.IntN(11_000))
	case "two words":
		return word(c.r.IntN(20)) + " " + word(200+c.r.IntN(300))
	case "none":
		return "qwertyq" + word(c.r.IntN(1000))
	}
	parts := []string{"What"} // a question
	for _, top := range []int{20, 20, 60, 300, 60, 3000, 20} {
		parts = append(parts, word(c.r.IntN(top)))
	}
	return strings.Join(parts, " ") + "?"
}
