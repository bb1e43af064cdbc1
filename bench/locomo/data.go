package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
)

// dialogue is one conversation of the benchmark.
type dialogue struct {
	turns     []turn
	questions []question
}

// turn is what somebody said.
type turn struct {
	ID      string `json:"dia_id"`
	Speaker string `json:"speaker"`
	Text    string `json:"text"`
	Caption string `json:"blip_caption"`
}

// question is what the search is asked, with the turns that answer it.
type question struct {
	Text     string   `json:"question"`
	Evidence []string `json:"evidence"`
	Category int      `json:"category"`
}

// categories are the benchmark's, by number.
var categories = map[int]string{1: "several turns", 2: "time", 3: "inference", 4: "one turn", 5: "adversarial"}

func load(path string, captions bool) (d dialogue, a string, err error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return d, "", err
	}
	var file struct {
		Conversation map[string]json.RawMessage `json:"conversation"`
		Questions    []question                 `json:"qa"`
	}
	if err := json.Unmarshal(raw, &file); err != nil {
		return d, "", fmt.Errorf("this is no conversation of LoCoMo: %w", err)
	}
	if err := json.Unmarshal(file.Conversation["speaker_a"], &a); err != nil {
		return d, "", errors.New("this is no conversation of LoCoMo: it names no speaker")
	}
	for n := 1; file.Conversation[fmt.Sprintf("session_%d", n)] != nil; n++ {
		var session []turn
		if err := json.Unmarshal(file.Conversation[fmt.Sprintf("session_%d", n)], &session); err != nil {
			return d, "", fmt.Errorf("session %d: %w", n, err)
		}
		for _, t := range session {
			if captions && t.Caption != "" {
				t.Text += "\n\n[" + t.Caption + "]"
			}
			d.turns = append(d.turns, t)
		}
	}
	for _, q := range file.Questions {
		q.Evidence = split(q.Evidence)
		if len(q.Evidence) > 0 {
			d.questions = append(d.questions, q)
		}
	}
	return d, a, nil
}

// split separates turns that the benchmark's authors wrote into one field.
func split(evidence []string) (out []string) {
	for _, e := range evidence {
		out = append(out, strings.FieldsFunc(e, func(r rune) bool { return r == ';' || r == ',' || r == ' ' })...)
	}
	return out
}

// step is one request of the replay: a message of A, and B's answer if there is one.
type step struct {
	say    turn
	answer *turn
}

// plan makes requests of turns. Consecutive turns of one speaker stay messages of their own.
func plan(turns []turn, a string) (steps []step) {
	for i := 0; i < len(turns); i++ {
		s := step{say: turns[i]}
		if turns[i].Speaker == a && i+1 < len(turns) && turns[i+1].Speaker != a {
			i++
			s.answer = &turns[i]
		}
		steps = append(steps, s)
	}
	return steps
}
