package mail

import (
	"fmt"
	"strings"
	"time"
	"unicode"

	"claude-memory-backend/internal/ident"
)

// Pause is what the owner of a webhook's endpoint is told when nothing is sent there any more.
type Pause struct {
	Owner    ident.AccountID
	Endpoint string    // its name
	Since    time.Time // since when every attempt has failed
	Why      string    // another reason, as a sentence; empty: that every attempt has failed
	Resume   string    // what to do once it works again, as a sentence
}

// EndpointPaused tells of a pause, or of an end.
func EndpointPaused(p Pause) Message {
	var b strings.Builder
	subject := fmt.Sprintf("Nothing is sent to the webhook %q any more", line(p.Endpoint))
	b.WriteString(subject + ".\n\n")
	if p.Why != "" {
		b.WriteString(line(p.Why) + "\n")
	} else {
		fmt.Fprintf(&b, "Every attempt has failed since %s.\n", moment(p.Since))
	}
	b.WriteString("\nWhat happened meanwhile is kept in the log of events and can be delivered later.\n")
	if p.Resume != "" {
		b.WriteString(strings.TrimSpace(p.Resume) + "\n")
	}
	return Message{Account: p.Owner, Subject: subject, Text: b.String()}
}

// Invitation is what somebody without an account is told who is asked into a project.
type Invitation struct {
	To      string
	By      ident.AccountID // who asks
	Inviter string          // that one's name
	Role    string
	Site    string // where people register; may be empty
	Open    bool   // anybody may register there
}

// Invited tells of an invitation. It repeats nothing that the inviter wrote but a name, and of that nothing which could
// become a link: anybody can make us write to anybody.
func Invited(i Invitation) Message {
	who := name(i.Inviter)
	if who == "" {
		who = "Somebody"
	}
	how := "ask whoever runs it for an account with this address (" + i.To + ")"
	if i.Open {
		how = "register with this address (" + i.To + ")"
		if i.Site != "" {
			how += " at " + i.Site
		}
	}
	return Message{To: i.To, Cause: i.By, Subject: who + " invites you to a project", Text: fmt.Sprintf(`%s invites you to take part in a project of the Claude Memory Backend, as %s.

To accept, %s. You then find the project among yours.

If you do not know who this is, there is nothing that you need to do: no account was made for you, and until you have one
nothing else comes from here.
`, who, i.Role, how)}
}

// name is what is left of a name when only a name is left.
func name(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsLetter(r) || unicode.IsMark(r) || strings.ContainsRune("'’-", r) {
			return r
		}
		return ' '
	}, s)
	s = strings.Join(strings.Fields(s), " ")
	if r := []rune(s); len(r) > 60 {
		s = string(r[:60])
	}
	return s
}

func moment(t time.Time) string { return t.UTC().Format("2 January 2006, 15:04 UTC") }
