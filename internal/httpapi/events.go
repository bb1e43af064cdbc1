package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"claude-memory-backend/internal/account"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/event/catalogue"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/workspace"
)

// eventView is an event of the log.
type eventView struct {
	ID        string    `json:"id" example:"evt_06f4k3z9c8tqv5m2yb7n1x0d4e"`
	Seq       int64     `json:"seq" doc:"Its place in the log of the database, in the order of commits; without gaps, but for a leap where the data was put back to an earlier state (data.restored)"`
	Type      string    `json:"type" example:"message.created"`
	Subject   string    `json:"subject" doc:"Identifier of what it is about"`
	Actor     person    `json:"actor"`
	CreatedAt time.Time `json:"created_at"`
	Data      object    `json:"data" doc:"Identifiers and facts, never text"`
}

func viewEvent(e event.Event) eventView {
	return eventView{ID: string(e.ID), Seq: int64(e.Seq), Type: e.Type, Subject: e.Subject, Actor: personOf(e.Actor),
		CreatedAt: e.CreatedAt.UTC(), Data: object(e.Data)}
}

// EventPlace is whose events are asked for.
type EventPlace struct {
	ProjectID string `query:"project_id" maxLength:"64" doc:"Events of this project only, wherever it lives"`
}

// open opens the workspace whose log is asked for: the actor's own, or the one that the project is in.
func (p EventPlace) open(x *exchange) (Workspace, error) {
	if p.ProjectID == "" {
		return x.s.deps.Open(x.ctx, x.actor, x.tenant)
	}
	if _, err := ident.Parse[ident.ProjectID](p.ProjectID); err != nil {
		return Workspace{}, err
	}
	return x.s.deps.Enter(x.ctx, x.actor, x.tenant, p.ProjectID)
}

type eventList struct {
	Call
	EventPlace
	After  int64  `query:"after" minimum:"0" doc:"Events after this seq; 0 for all"`
	Limit  int    `query:"limit" minimum:"1" maximum:"200" default:"20"`
	Cursor string `query:"cursor" maxLength:"1024" doc:"From next_cursor"`
}

// eventsScanned is how many events of the whole log a request looks at, at most, to find those of a project.
const eventsScanned = 2000

func (s *Server) listEvents(x *exchange, in *eventList) (*paged[eventView], error) {
	const op = "httpapi.listEvents"
	after := event.Seq(in.After)
	if in.Cursor != "" {
		text, ok := strings.CutPrefix(in.Cursor, "seq-")
		n, err := strconv.ParseInt(text, 10, 64)
		if !ok || err != nil || n < 0 {
			return nil, fault.BadInput(op, "query.cursor", "must be the next_cursor of an earlier page")
		}
		after = event.Seq(n)
	}
	ws, err := in.open(x)
	if err != nil {
		return nil, err
	}
	defer ws.Release()
	look := in.read
	if in.ProjectID != "" { // a page may look at much, and show nothing
		look = in.again(x, replayPatience)
	}
	list, upTo, more, err := look(x.ctx, ws, after, in.Limit)
	if err != nil {
		return nil, err
	}
	next := ""
	if more {
		next = eventCursor(upTo)
	}
	return pageOf(list, next, viewEvent), nil
}

// read reads up to limit of the events after a position that are asked for, looking at eventsScanned of the whole log at most.
// upTo is how far it looked; more says that there are others after that.
func (p EventPlace) read(ctx context.Context, ws Workspace, after event.Seq, limit int) (list []event.Event, upTo event.Seq, more bool, err error) {
	if p.ProjectID != "" {
		return ws.Events.About(ctx, ident.ProjectID(p.ProjectID), after, eventsScanned, limit)
	}
	if list, err = ws.Events.Since(ctx, after, limit+1); err != nil || len(list) == 0 {
		return nil, after, false, err
	}
	more = len(list) > limit
	list = list[:min(limit, len(list))]
	return list, list[len(list)-1].Seq, more, nil
}

// replayPatience is how long somebody waits for a turn to look at what was missed.
const replayPatience = 2 * time.Second

// again is read when it is the actor's turn to read a part of the log again. It is Throttled when that does not come for so long.
func (p EventPlace) again(x *exchange, patience time.Duration) func(context.Context, Workspace, event.Seq, int) ([]event.Event, event.Seq, bool, error) {
	return func(ctx context.Context, ws Workspace, after event.Seq, limit int) ([]event.Event, event.Seq, bool, error) {
		if x.s.deps.Again == nil {
			return p.read(ctx, ws, after, limit)
		}
		wait, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		done, err := x.s.deps.Again(wait, ws.Tenant, x.actor.Account, ws.Tenant != x.tenant)
		if err != nil {
			return nil, after, false, err
		}
		upTo := after
		defer func() { done(int(min(upTo-after, eventsScanned))) }()
		var list []event.Event
		var more bool
		list, upTo, more, err = p.read(ctx, ws, after, limit)
		return list, upTo, more, err
	}
}

func eventCursor(after event.Seq) string { return "seq-" + strconv.FormatInt(int64(after), 10) }

type eventStream struct {
	Call
	EventPlace
	LastEventID string `header:"Last-Event-ID" maxLength:"32" doc:"The seq of the last event that the client has: what follows comes. Without it, what happens from now on"`
	After       string `query:"after" maxLength:"32" doc:"The same, for clients that cannot set the header"`
}

// streamEvents follows the log. Whoever comes back with the last seq misses nothing.
func (s *Server) streamEvents(x *exchange, in *eventStream) (*written, error) {
	const op = "httpapi.streamEvents"
	last := in.LastEventID
	if last == "" {
		last = in.After
	}
	after := event.Seq(-1)
	if last != "" {
		n, err := strconv.ParseInt(last, 10, 64)
		if err != nil || n < 0 {
			return nil, fault.BadInput(op, "header.Last-Event-ID", "must be the seq of an event")
		}
		after = event.Seq(n)
	}
	ws, err := in.open(x)
	if err != nil {
		return nil, err
	}
	defer ws.Release()
	over, unwatch, err := s.deps.Live.Watch(account.Identity{Actor: x.actor, Tenant: x.tenant, ExpiresAt: x.expires}, ws.Tenant, in.ProjectID)
	if err != nil {
		return nil, err
	}
	queue := newEventQueue()
	at, leave, err := s.deps.Listen(x.ctx, ws.Tenant, queue)
	if err != nil {
		unwatch()
		return nil, err
	}
	if after < 0 {
		after = at
	}
	return &written{Body: func(hc huma.Context) {
		x := hc.(*exchange)
		defer unwatch()
		defer leave()
		defer s.streams.enter()()
		w := &eventWriter{sse: sse{w: x.w, rc: http.NewResponseController(x.w), now: s.now}, project: ident.ProjectID(in.ProjectID), log: ws.Events, at: after}
		w.begin()
		if after > at {
			w.resync(at) // of another log, or of nobody's
		} else if err := s.replayEvents(x, in.EventPlace, w, at, over); errors.Is(err, errStopping) {
			w.comment(stoppingComment)
			return
		} else if err != nil {
			_ = s.answerTo(x, err) // logged; the status has been sent
			w.comment("the stream broke: ask again with Last-Event-ID")
			return
		}
		ping := time.NewTicker(s.cfg.PingEvery)
		defer ping.Stop()
		for w.err == nil {
			select {
			case <-queue.wake:
				list, lost, full := queue.take()
				if lost != nil {
					w.resync(*lost)
				}
				w.events(list)
				if full {
					w.comment("the client reads too slowly: ask again with Last-Event-ID")
					return
				}
			case <-ping.C:
				w.event("", "ping", struct{}{})
			case <-over:
				w.comment("the session, or the access, has ended")
				return
			case <-s.streams.draining.Done():
				w.comment(stoppingComment)
				return
			case <-x.r.Context().Done():
				return
			}
		}
	}}, nil
}

// replayEvents writes what the log has after the writer's place, up to at, unless the stream has to end (errStopping). Who may not look at so much
// of somebody's log now is told to read everything again; one's own log takes as long as it takes.
func (s *Server) replayEvents(x *exchange, place EventPlace, w *eventWriter, at event.Seq, over <-chan struct{}) error {
	if w.at >= at {
		return nil
	}
	ws, err := place.open(x)
	if err != nil {
		return err
	}
	defer ws.Release()
	look := place.again(x, replayPatience)
	for windows := 0; w.at < at && w.err == nil; windows++ {
		if place.ProjectID != "" && windows == replayWindows {
			w.resync(at)
			return nil
		}
		list, upTo, more, err := look(x.ctx, ws, w.at, eventsScanned)
		switch {
		case fault.Is(err, fault.Throttled) && place.ProjectID != "":
			w.resync(at)
			return nil
		case fault.Is(err, fault.Throttled):
			select {
			case <-over:
				return errStopping
			case <-s.streams.draining.Done():
				return errStopping
			default:
				continue
			}
		case err != nil:
			return err
		}
		w.events(list)
		w.at = max(w.at, upTo)
		if !more {
			break // or the log was replaced meanwhile: the listener hears of it
		}
	}
	w.at = max(w.at, at)
	return nil
}

// replayWindows is how often so many events are looked at, at most, to find those of a project that a stream missed.
const replayWindows = 5

// eventWriter writes events of a log, each once.
type eventWriter struct {
	sse
	project ident.ProjectID // empty: all
	log     event.ProjectLog
	at      event.Seq
}

func (w *eventWriter) events(list []event.Event) {
	for _, e := range list {
		if e.Seq <= w.at {
			continue
		}
		w.at = e.Seq
		if shown, ok := w.log.Shown(w.project, e); ok {
			w.event(strconv.FormatInt(int64(e.Seq), 10), e.Type, viewEvent(shown))
		}
		if e.Type == event.Restored {
			w.resync(e.Seq)
		}
	}
}

// resync tells the client to read everything again: its place is of another log.
func (w *eventWriter) resync(at event.Seq) {
	w.at = at
	w.event(strconv.FormatInt(int64(at), 10), "resync", resyncEvent{Seq: int64(at)})
}

type resyncEvent struct {
	Seq int64 `json:"seq"`
}

// queued is how many events wait for a stream's client, at most.
const queued = 2000

// eventQueue is a workspace.Listener that keeps events until a stream takes them.
type eventQueue struct {
	wake chan struct{}
	mu   sync.Mutex
	list []event.Event
	lost *event.Seq
	full bool
}

func newEventQueue() *eventQueue { return &eventQueue{wake: make(chan struct{}, 1)} }

// Tell implements workspace.Listener.
func (q *eventQueue) Tell(_ context.Context, _ *workspace.Workspace, events []event.Event) {
	q.mu.Lock()
	if q.full = q.full || len(q.list)+len(events) > queued; !q.full {
		q.list = append(q.list, events...)
	}
	q.mu.Unlock()
	q.stir()
}

// Lost implements workspace.Listener.
func (q *eventQueue) Lost(at event.Seq) {
	q.mu.Lock()
	q.lost, q.list = &at, nil
	q.mu.Unlock()
	q.stir()
}

func (q *eventQueue) stir() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *eventQueue) take() (list []event.Event, lost *event.Seq, full bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	list, lost, full = q.list, q.lost, q.full
	q.list, q.lost = nil, nil
	return list, lost, full
}

// eventEntry is one type of event, as the catalogue describes it.
type eventEntry struct {
	Type    string `json:"type" example:"message.created"`
	Meaning string `json:"meaning"`
	Subject string `json:"subject" doc:"What the subject of the event identifies: the prefix of its identifiers" example:"msg_"`
	Schema  object `json:"schema" doc:"JSON Schema (2020-12) of the event's data. Take members that it does not describe: later versions add some"`
	Example object `json:"example" doc:"A whole event"`
}

func viewEventType(e catalogue.Entry) eventEntry {
	return eventEntry{Type: e.Type, Meaning: e.Meaning, Subject: string(e.Subject), Schema: object(e.Schema()), Example: object(e.Example())}
}

type eventCatalogue struct{ Call }

func (s *Server) listEventTypes(*exchange, *eventCatalogue) (*paged[eventEntry], error) {
	return pageOf(catalogue.All(), "", viewEventType), nil
}

// describeEvents puts what each type of event tells into the document's components: "Data.message.created".
func describeEvents(schemas map[string]*huma.Schema) error {
	for _, e := range catalogue.All() {
		var members map[string]any
		if err := json.Unmarshal(e.Schema(), &members); err != nil {
			return fault.Wrap("httpapi.describeEvents", err)
		}
		delete(members, "$schema") // it is the document's own
		schemas["Data."+e.Type] = &huma.Schema{Extensions: members}
	}
	return nil
}

func eventRows() []operation {
	return []operation{
		row(tagLive, "list-event-types", "GET", "/events/catalogue", "Read which events there are", on((*Server).listEventTypes)).
			with(func(o *operation) {
				o.Access = Public
				o.description = "Every type of event that the log can have, with its meaning, the JSON Schema of its data and an example. " +
					"A filter is a type, all types of one noun (`message.*`), or `*`."
			}),
		row(tagLive, "list-events", "GET", "/events", "Pull the log of events, oldest first", on((*Server).listEvents)).
			with(refuses(missing)).with(func(o *operation) {
			o.description = "Give the last `seq` that was seen as `after`. `seq` counts per database and survives moves. With `project_id`, " +
				"one request looks at 2,000 events of the whole log, and who looks at very many is `throttled` for a moment: a page may have fewer events than `limit`, or none, and still a " +
				"`next_cursor`, which goes on after all that was looked at. Members of a project hear what they may read: not who is invited, and not " +
				"which other project a conversation came from or went to. `data.restored` says that the data was put back to an earlier " +
				"state: read everything again."
		}),
		row(tagLive, "stream-events", "GET", "/events/stream", "Follow the log of events", on((*Server).streamEvents)).
			with(refuses(missing)).with(func(o *operation) {
			o.waits = true
			o.description = "Server-Sent Events: `id` is the event's `seq`, `event` its type, `data` the event. With `Last-Event-ID`, what was " +
				"missed comes first. `resync {seq}` says that the place is of another log, or, with `project_id`, more than 10,000 events of the " +
				"whole log ago, or that much was read again just now: read everything again. `ping` comes every 15 " +
				"seconds. The stream ends with the session, and when the access token expires: ask again with a fresh one."
			o.answers = map[string]*huma.Response{"200": {Description: "Server-Sent Events",
				Content: map[string]*huma.MediaType{"text/event-stream": {Schema: &huma.Schema{Type: "string"},
					Example: "id: 7\nevent: message.created\ndata: {\"id\":\"evt_…\",\"seq\":7,\"type\":\"message.created\"}\n\n"}}}}
		}),
	}
}
