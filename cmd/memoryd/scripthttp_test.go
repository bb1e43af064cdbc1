package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf16"

	"github.com/coder/websocket"
	"github.com/rogpeppe/go-internal/testscript"
)

// The client of the stories. Paths are below /api/v1 unless they begin with /api/. Quoted arguments may hold ${NAME}.
// A place is a path into the answer's JSON: data.0.title, data.-1.id.
//
//	GET|POST|PUT|PATCH|DELETE PATH [BODY] -> STATUS   a request; stdout is the body of the answer
//	with 'Name: value'         one more header, for the next request only
//	as TOKEN                   sends the token from here on; as nobody: none
//	register NAME              an account name@example.com, its tokens in $NAME and $NAME_REFRESH, and speaks as it
//	talk NAME                  a new conversation, its id in $NAME
//	keep NAME PLACE            puts a value of the last answer into $NAME
//	header NAME REGEXP         a header of the last answer
//	has PLACE [VALUE]          the value is there (and is that); ! has PLACE: nothing is there
//	like PLACE REGEXP          the value matches; ! like: it does not
//	count PLACE N              the list has N items
//	poll PATH PLACE VALUE      asks again until the value is that
//	await PATH PLACE REGEXP    asks again until the value matches: what is told before it is stored may be lost with the server
//	stream @NAME METHOD PATH [BODY]   opens an event stream, answered 200; it is read in the background
//	until @NAME REGEXP         waits for an event whose "type data" matches
//	ended @NAME                waits for the end of the stream; ! ended: it must break instead
//	leave @NAME                closes it
//
// until, ended and leave make {"events": [{id, event, data}], "text": the deltas joined} the last answer. The deltas
// of every stream are checked: each begins where the one before it ended.
type browser struct {
	client  *http.Client
	base    string
	token   string
	extra   http.Header
	status  int
	header  http.Header
	body    []byte
	streams map[string]*stream
	told    eventsTold
}

func newBrowser() *browser {
	return &browser{client: &http.Client{Transport: &http.Transport{DisableCompression: true}}, extra: http.Header{},
		streams: make(map[string]*stream), told: eventsTold{}}
}

func (b *browser) close() {
	for _, s := range b.streams {
		s.cancel()
		<-s.done
	}
	b.client.CloseIdleConnections()
}

type command = func(*testscript.TestScript, bool, []string)

func browserCommands() map[string]command {
	all := map[string]command{
		"with":      cmdWith,
		"as":        cmdAs,
		"register":  cmdRegister,
		"talk":      cmdTalk,
		"keep":      cmdKeep,
		"header":    cmdHeader,
		"has":       cmdHas,
		"like":      cmdLike,
		"count":     cmdCount,
		"poll":      cmdPoll,
		"await":     cmdAwait,
		"stream":    cmdStream,
		"until":     cmdUntil,
		"ended":     cmdEnded,
		"leave":     cmdLeave,
		"events":    cmdEvents,
		"told":      cmdTold,
		"sink":      cmdSink,
		"delivered": cmdDelivered,
	}
	maps.Copy(all, socketCommands())
	for _, method := range []string{"GET", "POST", "PUT", "PATCH", "DELETE"} {
		all[method] = func(ts *testscript.TestScript, neg bool, args []string) {
			if neg || len(args) < 3 || len(args) > 4 || args[len(args)-2] != "->" {
				ts.Fatalf("usage: %s PATH [BODY] -> STATUS", method)
			}
			b := storyOf(ts).browser
			ts.Check(b.ask(ts, method, args[0], slices.Concat(args[1:len(args)-2], []string{""})[0]))
			ts.Check(b.expect(args[len(args)-1]))
			if len(b.body) > 1<<19 {
				return // the parts of the documentation page would only bury what is wrong
			}
			_, err := ts.Stdout().Write(b.body)
			ts.Check(err)
		}
	}
	return all
}

// request builds a request of the story.
func (b *browser) request(ctx context.Context, ts *testscript.TestScript, method, path, body string) (*http.Request, error) {
	path, body = os.Expand(path, ts.Getenv), os.Expand(body, ts.Getenv)
	if !strings.HasPrefix(path, "/api/") {
		path = "/api/v1" + path
	}
	var r io.Reader
	if body != "" {
		r = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, b.base+path, r)
	if err != nil {
		return nil, err
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if b.token != "" {
		req.Header.Set("Authorization", "Bearer "+b.token)
	}
	for name, values := range b.extra {
		req.Header[name] = values
	}
	b.extra = http.Header{}
	return req, nil
}

// ask makes a request and keeps its answer.
func (b *browser) ask(ts *testscript.TestScript, method, path, body string) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	req, err := b.request(ctx, ts, method, path, body)
	if err != nil {
		return err
	}
	res, err := b.client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	b.status, b.header = res.StatusCode, res.Header
	b.body, err = io.ReadAll(res.Body)
	return err
}

func (b *browser) expect(status string) error {
	if strconv.Itoa(b.status) != status {
		return fmt.Errorf("status %d, not %s:\n%s", b.status, status, b.body)
	}
	return nil
}

// value finds a place in the last answer.
func (b *browser) value(place string) (any, bool, error) {
	var v any
	d := json.NewDecoder(bytes.NewReader(b.body))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		return nil, false, fmt.Errorf("the answer is no JSON: %w\n%s", err, b.body)
	}
	for _, step := range strings.Split(place, ".") {
		switch in := v.(type) {
		case map[string]any:
			next, ok := in[step]
			if !ok {
				return nil, false, nil
			}
			v = next
		case []any:
			i, err := strconv.Atoi(step)
			if i < 0 {
				i += len(in)
			}
			if err != nil || i < 0 || i >= len(in) {
				return nil, false, nil
			}
			v = in[i]
		default:
			return nil, false, nil
		}
	}
	return v, true, nil
}

// text is a value as a story writes it.
func text(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case json.Number:
		return v.String()
	}
	raw, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(raw)
}

// found is value for commands that need something there.
func (b *browser) found(ts *testscript.TestScript, place string) any {
	v, ok, err := b.value(place)
	ts.Check(err)
	if !ok {
		ts.Fatalf("there is no %s in\n%s", place, b.body)
	}
	return v
}

// arguments checks how many there are and expands the quoted ones.
func arguments(ts *testscript.TestScript, args []string, low, high int, usage string) []string {
	if len(args) < low || len(args) > high {
		ts.Fatalf("usage: %s", usage)
	}
	out := make([]string, len(args))
	for i, a := range args {
		out[i] = os.Expand(a, ts.Getenv)
	}
	return out
}

func cmdWith(ts *testscript.TestScript, _ bool, args []string) {
	args = arguments(ts, args, 1, 1, "with 'Name: value'")
	name, value, _ := strings.Cut(args[0], ": ")
	storyOf(ts).extra.Add(name, value)
}

func cmdAs(ts *testscript.TestScript, _ bool, args []string) {
	args = arguments(ts, args, 1, 1, "as TOKEN|nobody")
	storyOf(ts).token = strings.TrimPrefix(args[0], "nobody")
}

func cmdRegister(ts *testscript.TestScript, _ bool, args []string) {
	args = arguments(ts, args, 1, 1, "register NAME")
	b := storyOf(ts).browser
	b.token = ""
	body := fmt.Sprintf(`{"email": "%s@example.com", "password": "the harbour of %[1]s"}`, strings.ToLower(args[0]))
	ts.Check(b.ask(ts, "POST", "/auth/register", body))
	ts.Check(b.expect("201"))
	b.token = text(b.found(ts, "access_token"))
	ts.Setenv(args[0], b.token)
	ts.Setenv(args[0]+"_REFRESH", text(b.found(ts, "refresh_token")))
	ts.Setenv(args[0]+"_ID", text(b.found(ts, "user.id")))
	if own := ts.Getenv(ownDatabase); own != "" {
		status, header, body := b.status, b.header, b.body
		b.moveTo(ts, own)
		b.status, b.header, b.body = status, header, body // the last answer is that of registering
	}
}

// moveTo makes a database of the account's own the active one, as a user would.
func (b *browser) moveTo(ts *testscript.TestScript, address string) {
	ts.Check(b.ask(ts, "POST", "/database", fmt.Sprintf(`{"name": "Mine", "url": %q}`, address)))
	ts.Check(b.expect("201"))
	ts.Check(b.ask(ts, "POST", "/database/"+text(b.found(ts, "id"))+"/activate", ""))
	ts.Check(b.expect("202"))
	cmdPoll(ts, false, []string{"/jobs/" + text(b.found(ts, "id")), "state", "completed"})
}

func cmdTalk(ts *testscript.TestScript, _ bool, args []string) {
	args = arguments(ts, args, 1, 1, "talk NAME")
	b := storyOf(ts).browser
	ts.Check(b.ask(ts, "POST", "/conversations", "{}"))
	ts.Check(b.expect("201"))
	ts.Setenv(args[0], text(b.found(ts, "id")))
}

func cmdKeep(ts *testscript.TestScript, _ bool, args []string) {
	args = arguments(ts, args, 2, 2, "keep NAME PLACE")
	ts.Setenv(args[0], text(storyOf(ts).found(ts, args[1])))
}

func cmdHeader(ts *testscript.TestScript, neg bool, args []string) {
	args = arguments(ts, args, 2, 2, "header NAME REGEXP")
	got := storyOf(ts).header.Get(args[0])
	if matches(ts, args[1], got) == neg {
		ts.Fatalf("header %s is %q", args[0], got)
	}
}

func cmdHas(ts *testscript.TestScript, neg bool, args []string) {
	args = arguments(ts, args, 1, 2, "has PLACE [VALUE]")
	b := storyOf(ts).browser
	v, ok, err := b.value(args[0])
	ts.Check(err)
	switch {
	case neg && len(args) == 1 && ok:
		ts.Fatalf("there is a %s: %s", args[0], text(v))
	case neg && len(args) == 2 && (!ok || text(v) == args[1]):
		ts.Fatalf("%s is %q", args[0], text(v))
	case !neg && (!ok || len(args) == 2 && text(v) != args[1]):
		ts.Fatalf("%s is %q (there: %v) in\n%s", args[0], text(v), ok, b.body)
	}
}

func cmdLike(ts *testscript.TestScript, neg bool, args []string) {
	args = arguments(ts, args, 2, 2, "like PLACE REGEXP")
	if got := text(storyOf(ts).found(ts, args[0])); matches(ts, args[1], got) == neg {
		ts.Fatalf("%s is %q", args[0], got)
	}
}

func cmdCount(ts *testscript.TestScript, _ bool, args []string) {
	args = arguments(ts, args, 2, 2, "count PLACE N")
	list, ok := storyOf(ts).found(ts, args[0]).([]any)
	if !ok || strconv.Itoa(len(list)) != args[1] {
		ts.Fatalf("%s has %d items, not %s:\n%s", args[0], len(list), args[1], storyOf(ts).body)
	}
}

func cmdPoll(ts *testscript.TestScript, _ bool, args []string) {
	args = arguments(ts, args, 3, 3, "poll PATH PLACE VALUE")
	storyOf(ts).again(ts, args[0], args[1], func(value string) bool { return value == args[2] })
}

func cmdAwait(ts *testscript.TestScript, _ bool, args []string) {
	args = arguments(ts, args, 3, 3, "await PATH PLACE REGEXP")
	re, err := regexp.Compile(args[2])
	ts.Check(err)
	storyOf(ts).again(ts, args[0], args[1], re.MatchString)
}

// again asks until the value is as it should be.
func (b *browser) again(ts *testscript.TestScript, path, place string, enough func(value string) bool) {
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		ts.Check(b.ask(ts, "GET", path, ""))
		v, _, err := b.value(place)
		ts.Check(err)
		if enough(text(v)) {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("%s stays %q:\n%s", place, text(v), b.body)
		}
	}
}

func matches(ts *testscript.TestScript, pattern, s string) bool {
	re, err := regexp.Compile(pattern)
	ts.Check(err)
	return re.MatchString(s)
}

// stream is an event stream, or a WebSocket, that is read in the background.
type stream struct {
	socket *websocket.Conn
	cancel context.CancelFunc
	done   chan struct{}

	mu     sync.Mutex
	grown  chan struct{} // closed and replaced with every event
	events []streamEvent
	text   string
	units  int // where the next delta has to begin; -1: anywhere
	wrong  error
	broken error // how reading ended; nil: properly
}

type streamEvent struct {
	ID    string          `json:"id"`
	Event string          `json:"event"`
	Data  json.RawMessage `json:"data"`
}

func cmdStream(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 3 || len(args) > 4 || !strings.HasPrefix(args[0], "@") {
		ts.Fatalf("usage: stream @NAME METHOD PATH [BODY]")
	}
	b := storyOf(ts).browser
	ctx, cancel := context.WithCancel(context.Background())
	s := &stream{cancel: cancel, done: make(chan struct{}), grown: make(chan struct{})}
	req, err := b.request(ctx, ts, args[1], args[2], slices.Concat(args[3:], []string{""})[0])
	ts.Check(err)
	req.Header.Set("Accept", "text/event-stream")
	if req.Header.Get("Last-Event-ID") != "" {
		s.units = -1
	}
	res, err := b.client.Do(req)
	ts.Check(err)
	b.status, b.header, b.body = res.StatusCode, res.Header, nil
	if res.StatusCode != http.StatusOK || !strings.HasPrefix(res.Header.Get("Content-Type"), "text/event-stream") {
		defer res.Body.Close()
		raw, _ := io.ReadAll(res.Body) // shown only
		cancel()
		ts.Fatalf("no stream but %d:\n%s", res.StatusCode, raw)
	}
	b.streams[args[0]] = s
	go s.read(res.Body)
}

func (s *stream) read(body io.ReadCloser) {
	defer close(s.done)
	defer body.Close()
	r := bufio.NewReader(body)
	var e streamEvent
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			s.mu.Lock()
			if err != io.EOF || line != "" {
				s.broken = err
			}
			s.mu.Unlock()
			return
		}
		name, value, _ := strings.Cut(strings.TrimRight(line, "\r\n"), ": ")
		switch name {
		case "id":
			e.ID = value
		case "event":
			e.Event = value
		case "data":
			e.Data = json.RawMessage(value)
		case "":
			if value == "" && e.Event != "" && e.Event != "ping" {
				s.take(e)
			}
			e = streamEvent{}
		}
	}
}

// take keeps an event; a delta must begin where the text so far ends, in UTF-16 code units.
func (s *stream) take(e streamEvent) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.Event == "message.delta" {
		var d struct {
			Offset int    `json:"offset"`
			Text   string `json:"text"`
		}
		if err := json.Unmarshal(e.Data, &d); err != nil {
			s.wrong = err
		}
		if s.units < 0 {
			s.units = d.Offset
		}
		if d.Offset != s.units {
			s.wrong = fmt.Errorf("a delta begins at %d, the text ended at %d", d.Offset, s.units)
		}
		s.text += d.Text
		s.units += len(utf16.Encode([]rune(d.Text)))
	}
	s.events = append(s.events, e)
	close(s.grown)
	s.grown = make(chan struct{})
}

// show makes what was read the last answer.
func (b *browser) show(ts *testscript.TestScript, s *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ts.Check(s.wrong)
	var err error
	b.body, err = json.Marshal(map[string]any{"events": s.events, "text": s.text})
	ts.Check(err)
}

func streamOf(ts *testscript.TestScript, args []string, n int, usage string) *stream {
	args = arguments(ts, args, n, n, usage)
	s := storyOf(ts).streams[args[0]]
	if s == nil {
		ts.Fatalf("no stream %s", args[0])
	}
	return s
}

func cmdUntil(ts *testscript.TestScript, _ bool, args []string) {
	s := streamOf(ts, args, 2, "until @NAME REGEXP")
	re, err := regexp.Compile(os.Expand(args[1], ts.Getenv))
	ts.Check(err)
	limit := time.After(patience)
	for seen := 0; ; {
		s.mu.Lock()
		events, grown := s.events, s.grown
		s.mu.Unlock()
		for ; seen < len(events); seen++ {
			if re.MatchString(events[seen].Event + " " + string(events[seen].Data)) {
				storyOf(ts).show(ts, s)
				return
			}
		}
		select {
		case <-grown:
		case <-s.done:
			s.mu.Lock()
			more := len(s.events) > seen
			s.mu.Unlock()
			if !more {
				storyOf(ts).show(ts, s)
				ts.Fatalf("the stream ended without it:\n%s", storyOf(ts).body)
			}
		case <-limit:
			ts.Fatalf("it does not come")
		}
	}
}

func cmdEnded(ts *testscript.TestScript, neg bool, args []string) {
	s := streamOf(ts, args, 1, "ended @NAME")
	select {
	case <-s.done:
	case <-time.After(patience):
		ts.Fatalf("the stream does not end")
	}
	if (s.broken != nil) != neg {
		ts.Fatalf("the stream ended with: %v", s.broken)
	}
	storyOf(ts).show(ts, s)
}

func cmdLeave(ts *testscript.TestScript, _ bool, args []string) {
	s := streamOf(ts, args, 1, "leave @NAME")
	s.cancel()
	<-s.done
	storyOf(ts).show(ts, s)
}
