package mail

import (
	"fmt"
	"strings"
	"time"

	"claude-memory-backend/internal/ident"
)

// Pause is what the owner of a webhook's endpoint is told when nothing is sent there any more.
type Pause struct {
	Owner    ident.AccountID
	Endpoint string    // its name
	Since    time.Time // since when every attempt has failed
	Last     string    // what came of the last attempt: "500", "no answer within 15 s"
	Resume   string    // what to do once it works again, as a sentence
}

// EndpointPaused tells of a pause.
func EndpointPaused(p Pause) Message {
	var b strings.Builder
	fmt.Fprintf(&b, "The webhook %q is paused: nothing is sent to it any more.\n\n", line(p.Endpoint))
	fmt.Fprintf(&b, "Every attempt has failed since %s.\n", moment(p.Since))
	if p.Last != "" {
		fmt.Fprintf(&b, "The last one: %s.\n", strings.TrimSuffix(line(p.Last), "."))
	}
	b.WriteString("\nWhat happened meanwhile is kept in the log of events and can be delivered later.\n")
	if p.Resume != "" {
		b.WriteString(strings.TrimSpace(p.Resume) + "\n")
	}
	return Message{Account: p.Owner, Subject: fmt.Sprintf("The webhook %q is paused", line(p.Endpoint)), Text: b.String()}
}

func moment(t time.Time) string { return t.UTC().Format("2 January 2006, 15:04 UTC") }
