package fault

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// Checks collects everything that is wrong with an input, so that its sender hears of all of it at once.
type Checks struct{ fields []Field }

// Add notes one problem.
func (c *Checks) Add(location, message string) {
	c.fields = append(c.fields, Field{Location: location, Message: message})
}

// Text checks that s has between low and high characters and can be stored by every engine: valid UTF-8, no NUL.
func (c *Checks) Text(location, s string, low, high int) {
	if !utf8.ValidString(s) || strings.ContainsRune(s, 0) {
		c.Add(location, "must be valid UTF-8 without NUL characters")
		return
	}
	switch n := utf8.RuneCountInString(s); {
	case n < low && low == 1:
		c.Add(location, "must not be empty")
	case n < low:
		c.Add(location, fmt.Sprintf("must have at least %d characters", low))
	case n > high:
		c.Add(location, fmt.Sprintf("must have at most %d characters", high))
	}
}

// OneOf checks that s is one of the allowed words.
func (c *Checks) OneOf(location, s string, allowed ...string) {
	if !slices.Contains(allowed, s) {
		c.Add(location, "must be one of "+strings.Join(allowed, ", "))
	}
}

// Tags checks a list of labels: at most 50, each of 1 to 64 characters, none twice.
func (c *Checks) Tags(location string, tags []string) {
	if len(tags) > 50 {
		c.Add(location, "must have at most 50 items")
		return
	}
	for i, t := range tags {
		c.Text(fmt.Sprintf("%s[%d]", location, i), t, 1, 64)
		if slices.Contains(tags[:i], t) {
			c.Add(fmt.Sprintf("%s[%d]", location, i), "is there twice")
		}
	}
}

// Object checks that raw is a JSON object of at most 16 KiB, or nothing.
func (c *Checks) Object(location string, raw json.RawMessage) {
	if len(raw) == 0 {
		return
	}
	if len(raw) > 16<<10 {
		c.Add(location, "must have at most 16 KiB")
		return
	}
	var m map[string]json.RawMessage
	if err := json.Unmarshal(raw, &m); err != nil || m == nil {
		c.Add(location, "must be a JSON object")
		return
	}
	if bytes.Contains(raw, []byte{0}) || !utf8.Valid(raw) {
		c.Add(location, "must be valid UTF-8 without NUL characters")
	}
}

// Err returns an Invalid error with every problem, or nil when there is none.
func (c *Checks) Err(op string) error {
	if len(c.fields) == 0 {
		return nil
	}
	return &Error{Class: Invalid, Op: op, Code: "invalid_input", Message: "the request is not valid", Fields: c.fields}
}
