package main

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// The dialogue is made up: the benchmark's own may not be copied.
const made = `{"conversation": {"speaker_a": "Ada", "speaker_b": "Ben",
	"session_1": [{"speaker": "Ada", "dia_id": "D1:1", "text": "one"}, {"speaker": "Ben", "dia_id": "D1:2", "text": "two"},
		{"speaker": "Ada", "dia_id": "D1:3", "text": "three"}],
	"session_2": [{"speaker": "Ada", "dia_id": "D2:1", "text": "four", "blip_caption": "a boat"},
		{"speaker": "Ben", "dia_id": "D2:2", "text": "five"}],
	"session_3": [{"speaker": "Ben", "dia_id": "D3:1", "text": "six"}]},
	"qa": [{"question": "q", "evidence": ["D1:1; D2:2"], "category": 1}, {"question": "r", "evidence": [], "category": 5}]}`

func TestLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "made.json")
	if err := os.WriteFile(path, []byte(made), 0o600); err != nil {
		t.Fatal(err)
	}
	d, a, err := load(path, true)
	if err != nil || a != "Ada" || len(d.turns) != 6 || d.turns[3].Text != "four\n\n[a boat]" {
		t.Fatal(d, a, err)
	}
	t.Run("questions without evidence are left out", func(t *testing.T) {
		if len(d.questions) != 1 || !slices.Equal(d.questions[0].Evidence, []string{"D1:1", "D2:2"}) {
			t.Error(d.questions)
		}
	})
	t.Run("B answers where A has asked", func(t *testing.T) {
		var got []string
		for _, s := range plan(d.turns, a) {
			line := s.say.ID
			if s.answer != nil {
				line += ">" + s.answer.ID
			}
			got = append(got, line)
		}
		if want := []string{"D1:1>D1:2", "D1:3", "D2:1>D2:2", "D3:1"}; !slices.Equal(got, want) {
			t.Errorf("got %q", got)
		}
	})
	t.Run("ranks count from one", func(t *testing.T) {
		for evidence, want := range map[string]int{"a": 1, "c": 3, "d": 0} {
			if got := rank([]string{"a", "b", "c"}, []string{evidence}); got != want {
				t.Errorf("%s at %d, not %d", evidence, got, want)
			}
		}
	})
}
