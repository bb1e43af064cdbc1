package event

import (
	"bytes"
	"encoding/json"
	"slices"
	"strconv"
	"strings"

	"claude-memory-backend/internal/ident"
)

// About names what an event concerns beside its subject, as far as its data says so.
type About struct {
	Conversation string `json:"conversation_id"`
	Project      string `json:"project_id"`
	FromProject  string `json:"from_project_id"` // conversation.moved: where it was before
	Turn         string `json:"turn_id"`
	Job          string `json:"job_id"`
	Account      string `json:"account_id"`
	User         string `json:"user_id"`
	Tenant       string `json:"tenant_id"`
}

// About reads the identifiers in the event's data.
func (e Event) About() About {
	var a About
	_ = json.Unmarshal(e.Data, &a) // data without these fields concerns nothing else
	return a
}

// Concerns reports whether the event is about the project or conversation with that identifier, or about something in it.
func (e Event) Concerns(id string) bool {
	if e.Subject == id {
		return true
	}
	a := e.About()
	return id != "" && (a.Conversation == id || a.Project == id || a.FromProject == id)
}

// Restored is told when somebody put a tenant's data back to an earlier state. The numbers after it leap: none of those that
// the lost log gave out is given out again, so whoever comes back with one of them meets this event (decision 0058).
const Restored = "data.restored"

// shownToMembers are the kinds of events that concern members of a project. Whatever else may come to name a project is its
// owner's business until somebody decides otherwise.
var shownToMembers = [...]string{"project.", "conversation.", "message.", "turn.", "member."}

// For is the event as members of the project hear of it: what they could read themselves (decision 0057). It is false for
// what only the owner sees, as who is invited. Whether the event is about the project at all is the caller's question.
func (e Event) For(project ident.ProjectID) (_ Event, shown bool) {
	if e.Type == Restored {
		e.Subject, e.Data = string(project), json.RawMessage(`{}`) // not whose tenant, and by what job
		return e, true
	}
	if !slices.ContainsFunc(shownToMembers[:], func(kind string) bool { return strings.HasPrefix(e.Type, kind) }) {
		return Event{}, false
	}
	var data map[string]json.RawMessage
	if json.Unmarshal(e.Data, &data) != nil {
		return Event{}, false // not ours
	}
	changed := false
	if _, invitation := data["invitation_id"]; invitation {
		if _, came := data["user_id"]; !came {
			return Event{}, false
		}
		delete(data, "invitation_id")
		changed = true
	}
	own, none := json.RawMessage(strconv.Quote(string(project))), json.RawMessage("null")
	for _, name := range [...]string{"project_id", "from_project_id"} {
		if v, there := data[name]; there && !bytes.Equal(v, own) && !bytes.Equal(v, none) {
			data[name] = none
			changed = true
		}
	}
	if changed {
		raw, err := json.Marshal(data)
		if err != nil {
			return Event{}, false // what was read marshals
		}
		e.Data = raw
	}
	return e, true
}
