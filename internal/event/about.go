package event

import "encoding/json"

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
