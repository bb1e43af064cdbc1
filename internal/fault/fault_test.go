package fault_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"claude-memory-backend/internal/fault"
)

func TestWrap(t *testing.T) {
	cause := errors.New("disk on fire")
	inner := fault.New(fault.Stale, "store.Update", "", "read it again").With(cause)
	outer := fault.Wrap("service.Edit", inner)
	if fault.ClassOf(outer) != fault.Stale || fault.CodeOf(outer) != "stale_version" || !errors.Is(outer, cause) {
		t.Errorf("class %v, code %s", fault.ClassOf(outer), fault.CodeOf(outer))
	}
	if fault.Wrap("x", nil) != nil {
		t.Error("nothing became an error")
	}
	foreign := fault.Wrap("x", cause)
	if !fault.Is(foreign, fault.Internal) || !errors.Is(foreign, cause) {
		t.Error("a foreign error is not internal")
	}
	if e, _ := errors.AsType[*fault.Error](foreign); strings.Contains(e.Message, "fire") {
		t.Error("the message shows the cause")
	}
}

func TestEveryClassHasACode(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range fault.Classes() {
		if seen[c.String()] {
			t.Errorf("%s twice", c)
		}
		seen[c.String()] = true
	}
}

func TestChecks(t *testing.T) {
	var c fault.Checks
	c.Text("a", "", 1, 5)
	c.Text("b", "héllo!", 1, 5)
	c.Text("c", "nul\x00", 0, 50)
	c.Text("d", "\xff", 0, 50)
	c.Text("fine", "héllo", 1, 5)
	c.OneOf("e", "x", "y", "z")
	c.Tags("f", []string{"one", "one", ""})
	c.Object("g", json.RawMessage(`[1]`))
	c.Object("h", json.RawMessage(`null`))
	c.Object("fine", json.RawMessage(`{"a":1}`))
	err := c.Err("op")
	e, _ := errors.AsType[*fault.Error](err)
	if !fault.Is(err, fault.Invalid) {
		t.Fatal(err)
	}
	var at []string
	for _, f := range e.Fields {
		at = append(at, f.Location)
	}
	if got := strings.Join(at, " "); got != "a b c d e f[1] f[2] g h" {
		t.Errorf("wrong: %s", got)
	}
	var none fault.Checks
	if none.Err("op") != nil {
		t.Error("nothing wrong is an error")
	}
}

func TestWhatIsWrappedIsSaidOnce(t *testing.T) {
	err := fault.Wrap("outer", fault.Wrap("middle", fault.New(fault.Conflict, "inner", "taken", "it is taken").With(errors.New("driver"))))
	if got, want := err.Error(), "outer: middle: inner: taken: it is taken: driver"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	other := fault.New(fault.Unavailable, "outer", "away", "it is away").With(fault.New(fault.Conflict, "inner", "taken", "it is taken"))
	if got, want := other.Error(), "outer: away: it is away: inner: taken: it is taken"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
