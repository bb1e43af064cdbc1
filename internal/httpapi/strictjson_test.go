package httpapi

import "testing"

func TestHalfCharacters(t *testing.T) {
	for text, half := range map[string]bool{
		`"\ud83d\ude42 whole"`:          false,
		`"\ud800 alone"`:                true,
		`"\udc00 alone"`:                true,
		`"\ud83d\ud83d"`:                true,
		`"\ud83d"`:                      true,
		`"a backslash \\ud800 as text"`: false,
		`"\n\u00e9"`:                    false,
		`{"a":"\\","b":"\ud800"}`:       true,
	} {
		if got := halfCharacter([]byte(text)); got != half {
			t.Errorf("%s: %v", text, got)
		}
	}
}
