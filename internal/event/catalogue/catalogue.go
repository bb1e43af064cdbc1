package catalogue

import (
	"slices"
	"strings"
)

// Entry describes one type of event.
type Entry struct {
	Type    string // "conversation.created"
	Meaning string // one sentence
	Subject ID     // what the subject of the event identifies
	Fields  []Field
}

// Field is one member of an event's data. Consumers must take members that are not described: later versions add some.
type Field struct {
	Name     string
	About    string
	Kind     Kind
	Optional bool // may be missing
	Nullable bool
	Example  any
}

// Kind says how a value looks: an ID, Text, Count, Flag, Moment or Choice.
type Kind interface{ schema() map[string]any }

// ID is the prefix of identifiers of one kind: "prj_".
type ID string

// Text is any text.
type Text struct{}

// Count is a whole number, zero or more.
type Count struct{}

// Flag is true or false.
type Flag struct{}

// Moment is a time, as RFC 3339 writes it.
type Moment struct{}

// Choice is one of these words.
type Choice []string

// The identifiers that events name.
const (
	account      ID = "usr_"
	tenant       ID = "ten_"
	project      ID = "prj_"
	conversation ID = "conv_"
	message      ID = "msg_"
	turn         ID = "turn_"
	database     ID = "db_"
	job          ID = "job_"
	invitation   ID = "inv_"
	webhook      ID = "whk_"
)

// All returns every entry, in the order in which people read it: from a project to where everything is kept.
func All() []Entry {
	return slices.Concat(projects(), conversations(), turns(), members(), webhooks(), databases())
}

// Find returns the entry of a type.
func Find(kind string) (Entry, bool) {
	list := All()
	i := slices.IndexFunc(list, func(e Entry) bool { return e.Type == kind })
	if i < 0 {
		return Entry{}, false
	}
	return list[i], true
}

// Known reports whether a filter can match anything: "*", the types of one noun as in "message.*", or one type.
func Known(pattern string) bool {
	return slices.ContainsFunc(All(), func(e Entry) bool { return Match(pattern, e.Type) })
}

// Match reports whether a filter lets a type of event through.
func Match(pattern, kind string) bool {
	if pattern == "*" || pattern == kind {
		return true
	}
	noun, ok := strings.CutSuffix(pattern, ".*")
	if !ok {
		return false
	}
	of, _, _ := strings.Cut(kind, ".")
	return noun == of
}

// What many events tell.

func inProject() Field {
	return Field{Name: "project_id", About: "the project that it is in, if it is in one", Kind: project, Nullable: true, Example: example(project)}
}

func inConversation() Field {
	return Field{Name: "conversation_id", About: "the conversation", Kind: conversation, Example: example(conversation)}
}

func version(of string) Field {
	return Field{Name: "version", About: "the version of the " + of + " that this made", Kind: Count{}, Example: 2}
}

func by(of ID, name, about string) Field {
	return Field{Name: name, About: about, Kind: of, Example: example(of)}
}

func optional(f Field) Field {
	f.Optional = true
	return f
}

func projects() []Entry {
	status := func(now string) Field {
		return Field{Name: "status", About: "its status since then", Kind: Choice{"active", "paused", "completed", "archived"}, Example: now}
	}
	return []Entry{
		{"project.created", "A project was created.", project, []Field{status("active")}},
		{"project.updated", "A project was edited.", project, []Field{version("project"), status("paused")}},
		{"project.archived", "A project was archived.", project, []Field{version("project"), status("archived")}},
		{"project.deleted", "A project was deleted.", project, []Field{
			{Name: "conversations", About: "how many conversations were in it", Kind: Count{}, Example: 3},
			{Name: "conversations_deleted", About: "whether they went too; else they stay without a project", Kind: Flag{}, Example: false},
		}},
	}
}

func conversations() []Entry {
	status := func(now string) Field {
		return Field{Name: "status", About: "its status since then", Kind: Choice{"active", "pinned", "archived"}, Example: now}
	}
	from := Field{Name: "from_project_id", About: "the project that it was in before, if it was in one", Kind: project, Nullable: true, Example: nil}
	return []Entry{
		{"conversation.created", "A conversation was created.", conversation, []Field{inProject()}},
		{"conversation.updated", "A conversation was edited.", conversation,
			[]Field{version("conversation"), status("pinned"), inProject()}},
		{"conversation.archived", "A conversation was archived, and perhaps moved by the same edit.", conversation,
			[]Field{version("conversation"), status("archived"), inProject(), optional(from)}},
		{"conversation.moved", "A conversation went from one project to another, or into one, or out of one.", conversation,
			[]Field{version("conversation"), status("active"), inProject(), from}},
		{"conversation.titled", "The server gave a title to a conversation that had none.", conversation,
			[]Field{inConversation(), inProject()}},
		{"conversation.deleted", "A conversation was deleted with all its messages.", conversation, []Field{
			{Name: "messages", About: "how many messages it had", Kind: Count{}, Example: 12}, inProject(),
		}},
	}
}

// turns are messages and turns.
func turns() []Entry {
	ended := func(state string) []Field {
		return []Field{
			inConversation(), inProject(), by(turn, "turn_id", "the turn"), by(message, "message_id", "the assistant's message"),
			{Name: "state", About: "how it ended", Kind: Choice{"completed", "failed", "stopped", "interrupted"}, Example: state},
		}
	}
	return []Entry{
		{"message.created", "A message was stored. The text is read by the conversation's messages.", message, []Field{
			inConversation(), inProject(), by(message, "message_id", "the message"),
			{Name: "role", About: "who says it", Kind: Choice{"user", "assistant", "system"}, Example: "user"},
		}},
		{"turn.started", "A model was asked for an answer.", turn, []Field{
			inConversation(), inProject(), by(turn, "turn_id", "the turn"),
			{Name: "kind", About: "what was asked for: an answer, another one, or the rest of one", Kind: Choice{"send", "retry", "continue"}, Example: "send"},
			by(message, "user_message_id", "the message that is answered"), by(message, "assistant_message_id", "the message that the answer becomes"),
			{Name: "provider", About: "who is asked", Kind: Text{}, Example: "anthropic"},
			{Name: "model", About: "which model is asked for", Kind: Text{}, Example: "claude-sonnet-5-5"},
		}},
		{"turn.waiting", "The workflow that was asked has promised to deliver the answer later.", turn, []Field{
			inConversation(), inProject(), by(turn, "turn_id", "the turn"), by(message, "message_id", "the assistant's message"),
			{Name: "state", About: "what it does", Kind: Choice{"waiting"}, Example: "waiting"},
			{Name: "deadline", About: "until when it waits", Kind: Moment{}, Example: "2026-11-26T09:45:00.123456Z"},
		}},
		{"turn.completed", "The answer is complete.", turn, ended("completed")},
		{"turn.failed", "There is no answer, or half of one: the turn says why.", turn, ended("failed")},
		{"turn.stopped", "Somebody stopped the answer; what had arrived is kept.", turn, ended("stopped")},
		{"turn.interrupted", "The answer broke off, because the server or the connection to the model did; what had arrived is kept.", turn,
			ended("interrupted")},
		{"message.completed", "The assistant's message of a turn that ended, however it ended, has its final text.", message, ended("completed")},
	}
}

func members() []Entry {
	role := Field{Name: "role", About: "what the member is in the project", Kind: Choice{"editor", "commenter", "viewer"}, Example: "editor"}
	where := by(project, "project_id", "the project")
	who := by(account, "user_id", "the member")
	invited := by(invitation, "invitation_id", "the invitation")
	either := []Field{where, role, optional(who), optional(invited)}
	return []Entry{
		{"member.invited", "An address without an account was invited to a project.", project, []Field{where, role, invited}},
		{"member.added", "Somebody became a member of a project; with an invitation that was open until then.", project,
			[]Field{where, role, who, optional(invited)}},
		{"member.changed", "A member, or somebody who is invited, has another role.", project, either},
		{"member.removed", "A membership ended, or an invitation was taken back.", project, either},
	}
}

func webhooks() []Entry {
	state := func(now string) Field {
		return Field{Name: "state", About: "its state since then", Kind: Choice{"active", "paused", "disabled"}, Example: now}
	}
	of := Field{Name: "project_id", About: "the project that it is about, if it is about one", Kind: project, Nullable: true, Example: nil}
	edited := []Field{state("active"), version("webhook"), of}
	return []Entry{
		{"webhook.created", "A webhook was registered.", webhook, edited},
		{"webhook.updated", "A webhook was edited, paused by its owner, or made active again.", webhook, edited},
		{"webhook.secret_rotated", "A webhook got a new secret.", webhook, edited},
		{"webhook.tested", "A webhook was sent an event that never happened.", webhook, nil},
		{"webhook.redelivered", "Deliveries of a webhook are sent again.", webhook, []Field{
			{Name: "deliveries", About: "how many", Kind: Count{}, Example: 12}}},
		{"webhook.paused", "Nothing is sent to a webhook any more, because of its answers or for want of them.", webhook, []Field{
			state("paused"), version("webhook"), of, {Name: "reason", About: "why: 72 hours of nothing but failures, an answer 410, or a secret that cannot be read any more",
				Kind: Choice{"failing", "gone", "secret_lost"}, Example: "failing"}}},
		{"webhook.deleted", "A webhook was deleted with its deliveries.", webhook, edited},
	}
}

func databases() []Entry {
	kind := Field{Name: "kind", About: "the kind of place", Kind: Choice{"hosted_sqlite", "hosted_postgres", "external_postgres"},
		Example: "external_postgres"}
	work := by(job, "job_id", "the job that did it")
	from := by(database, "from", "the database that the data lived in")
	return []Entry{
		{"database.created", "A database was registered.", database, []Field{kind, optional(work)}},
		{"database.updated", "A configuration was edited.", database, []Field{version("configuration"),
			{Name: "credentials", About: "whether the password was replaced", Kind: Flag{}, Example: true}}},
		{"database.activation_started", "A job began to move the data to this database.", database, []Field{work, from}},
		{"database.activated", "The data lives in this database now.", database, []Field{work, from}},
		{"database.released", "An original of the data, or half a copy, was let go of.", database, []Field{kind}},
		{"database.deleted", "A database was forgotten.", database, []Field{kind, optional(work)}},
		{"data.restored", "The data was put back to an earlier state: read it again. Members of a project hear of the project as the subject.",
			tenant, []Field{optional(work), optional(Field{Name: "snapshot", About: "the backup that it was put back from", Kind: Text{},
				Example: "20261126T090000Z"})}},
		{"data.erased", "Everything that the account kept was erased, the log up to this event included.", tenant, []Field{work}},
	}
}
