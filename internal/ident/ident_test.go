package ident_test

import (
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

func TestIdentifiers(t *testing.T) {
	t.Run("later ones sort after earlier ones", func(t *testing.T) {
		ids := make([]string, 10_000)
		for i := range ids {
			ids[i] = string(ident.New[ident.MessageID]())
		}
		if !slices.IsSorted(ids) || len(slices.Compact(ids)) != 10_000 {
			t.Error("not strictly in order")
		}
	})
	t.Run("what was made can be read", func(t *testing.T) {
		id := ident.New[ident.ConversationID]()
		if got, err := ident.Parse[ident.ConversationID](string(id)); err != nil || got != id {
			t.Errorf("%s became %s, %v", id, got, err)
		}
	})
	good := string(ident.New[ident.ProjectID]())
	for name, text := range map[string]string{
		"nothing":          "",
		"another kind":     "conv_" + good[4:],
		"upper case":       strings.ToUpper(good),
		"too short":        good[:len(good)-1],
		"too long":         good + "0",
		"a foreign letter": good[:len(good)-1] + "u",
		"set spare bits":   good[:len(good)-1] + "z",
		"a space":          good[:len(good)-1] + " ",
		"only the prefix":  "prj_",
	} {
		t.Run(name+" is not found", func(t *testing.T) {
			if _, err := ident.Parse[ident.ProjectID](text); !fault.Is(err, fault.NotFound) {
				t.Errorf("%q: %v", text, err)
			}
		})
	}
	t.Run("one identifier has one spelling", rapid.MakeCheck(func(t *rapid.T) {
		text := "usr_" + rapid.StringMatching(`[0-9a-z]{26}`).Draw(t, "text")
		if id, err := ident.Parse[ident.AccountID](text); err == nil && string(id) != text {
			t.Fatalf("%q became %q", text, id)
		}
	}))
}
