package catalogue

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
)

const preface = `# Events

Everything that changes in an account's data is an event in its log. ` + "`GET /api/v1/events`" + ` pulls the log from any place,
` + "`GET /api/v1/events/stream`" + ` and the [WebSocket](LIVE.md) follow it. An event has an ` + "`id`" + `, a ` + "`seq`" + ` (its place in the log:
without gaps but for a leap where the data was put back to an earlier state, in the order of commits), a ` + "`type`" + `, a ` + "`subject`" + ` (what it is about), an ` + "`actor`" + ` (whose ` + "`id`" + ` is null for the
server itself), ` + "`created_at`" + ` and ` + "`data`" + `.

- **Data holds identifiers and facts, never text** ([0004](decisions/0004-events-hold-no-text.md)): what was said is read where it
  lies, by whoever may.
- **Take what you do not know.** Later versions add types of events and members of data; what is described here stays.
- Webhooks take filters, in ` + "`events`" + `; the ways to pull or follow the log take none but ` + "`project_id`" + `. A filter is a type, written as here
  (` + "`message.created`" + `), or a noun, what stands before the dot, with ` + "`.*`" + ` (` + "`message.*`" + `: all types of that noun, those of later versions
  too), or ` + "`*`" + `: every type of every noun, so also ` + "`webhook.*`" + ` and ` + "`database.*`" + `. There are no other patterns (no ` + "`*.created`" + `), capitals
  count, and what matches no type here is refused. An event is sent once if any of the filters lets it through. ` + "`webhook.test`" + `, which the
  test call sends, is in no log and asks no filter.
- ` + "`GET /api/v1/events/catalogue`" + ` serves this page as data: each type with the JSON Schema of its data and an example.

This page is written by ` + "`go test ./internal/event/catalogue -update`" + `; a test holds it against the catalogue, and others hold the
catalogue against what is sent.
`

// Page is the catalogue as a page of the documentation.
func Page() []byte {
	var b bytes.Buffer
	b.WriteString(preface)
	noun := ""
	for _, e := range All() {
		if e.Noun() != noun {
			noun = e.Noun()
			fmt.Fprintf(&b, "\n## %s\n", noun)
		}
		fmt.Fprintf(&b, "\n### %s\n\n%s The subject is a `%s…`.\n\n", e.Type, e.Meaning, e.Subject)
		if len(e.Fields) > 0 {
			b.WriteString("| Data | Value | Meaning |\n|---|---|---|\n")
		}
		for _, f := range e.Fields {
			fmt.Fprintf(&b, "| `%s` | %s | %s |\n", f.Name, f.looks(), f.About)
		}
		var example bytes.Buffer
		if err := json.Indent(&example, e.Example(), "", "  "); err != nil {
			panic("an example that is no JSON") // marshal made it
		}
		fmt.Fprintf(&b, "\n```json\n%s\n```\n", example.Bytes())
	}
	return b.Bytes()
}

// looks says how the value of a member looks.
func (f Field) looks() string {
	var s string
	switch k := f.Kind.(type) {
	case ID:
		s = "`" + string(k) + "…`"
	case Choice:
		s = "`" + strings.Join(k, "`, `") + "`"
	case Count:
		s = "a number"
	case Flag:
		s = "true or false"
	case Text:
		s = "text"
	case Moment:
		s = "a time"
	}
	if f.Nullable {
		s += " or null"
	}
	if f.Optional {
		s += "; may be missing"
	}
	return s
}
