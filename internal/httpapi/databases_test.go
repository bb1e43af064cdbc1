package httpapi

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"claude-memory-backend/internal/pgtest"
	"claude-memory-backend/internal/pgtest/toxic"
)

// ownDatabase is a fresh PostgreSQL database as a user has one, and the password in its address.
func ownDatabase(t testing.TB, raw string) (address, secret string) {
	t.Helper()
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	secret, _ = u.User.Password()
	u.RawQuery = "sslmode=disable"
	return u.String(), secret
}

// separately is the same address in separate fields.
func separately(t *testing.T, address string) string {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	secret, _ := u.User.Password()
	return fmt.Sprintf(`"kind":"postgres","host":%q,"port":%s,"database":%q,"username":%q,"password":%q,"tls":"disable"`,
		u.Hostname(), u.Port(), strings.Trim(u.Path, "/"), u.User.Username(), secret)
}

// ended waits for the end of a job and returns the last answer about it.
func (h *house) ended(as, id string) answer {
	h.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; {
		a := h.do(call{as: as, method: "GET", path: "/api/v1/jobs/" + id}).is(http.StatusOK)
		if s := a.text("state"); s != "queued" && s != "running" {
			return a
		}
		if time.Now().After(deadline) {
			h.t.Fatalf("the job does not end: %s", a.Text)
		}
		time.Sleep(10 * time.Millisecond) // nothing announces its end over HTTP
	}
}

// hosted is the id of the database that came with an account.
func (h *house) hosted(as string) string {
	h.t.Helper()
	a := h.do(call{as: as, method: "GET", path: "/api/v1/database"}).is(http.StatusOK)
	for i := range a.at("data").([]any) {
		if n := fmt.Sprint(i); strings.HasPrefix(a.text("data", n, "kind"), "hosted_") {
			return a.text("data", n, "id")
		}
	}
	h.t.Fatalf("no hosted database: %s", a.Text)
	return ""
}

// toOwn moves somebody's data to a database of their own, and returns its id.
func (h *house) toOwn(as, address string) string {
	h.t.Helper()
	h.work()
	own, _ := ownDatabase(h.t, address)
	id := h.make(as, "/api/v1/database", `{"name":"Mine","url":"`+own+`"}`)
	job := h.do(call{as: as, method: "POST", path: "/api/v1/database/" + id + "/activate"}).is(202).text("id")
	if a := h.ended(as, job); a.text("state") != "completed" {
		h.t.Fatalf("%s", a.Text)
	}
	return id
}

func TestMovingToADatabaseOfOnesOwn(t *testing.T) {
	h := newHouse(t)
	h.work()
	own, secret := ownDatabase(t, pgtest.URL(t))
	said := ""
	do := func(c call) answer {
		t.Helper()
		if c.as == "" {
			c.as = "ada"
		}
		a := h.do(c)
		said += a.Text + fmt.Sprint(a.Header)
		return a
	}
	at := "/api/v1/database"
	first := do(call{method: "GET", path: at}).is(200)
	for _, name := range []string{"host", "port", "database", "username", "tls"} {
		if v := first.at("data", "0", name); v != nil {
			t.Errorf("a hosted database shows %s %v", name, v)
		}
	}
	if first.text("data", "0", "kind") != "hosted_sqlite" || first.at("data", "0", "active") != true || first.text("data", "0", "state") != "active" ||
		first.at("data", "0", "size_bytes") == nil || first.at("data", "0", "schema_version") == nil || first.at("data", "0", "checked_at") == nil {
		t.Errorf("%s", first.Text)
	}
	hosted := first.text("data", "0", "id")

	// Testing an address stores nothing; both forms are the same.
	for _, body := range []string{`{"url":"` + own + `"}`, `{"name":"x",` + separately(t, own) + `}`} {
		a := do(call{method: "POST", path: at + "/test", body: body}).is(200)
		if a.at("ok") != true || a.at("reachable") != true || a.text("schema") != "none" || a.text("server_version") == "" || a.at("tls", "encrypted") != false ||
			a.at("privileges", "create_schema") != true || a.text("problems", "0", "level") != "warning" {
			t.Errorf("%s", a.Text)
		}
	}
	closed := do(call{method: "POST", path: at + "/test", body: `{"url":"postgres://ada@127.0.0.1:1/ada?sslmode=disable"}`}).is(200)
	if closed.at("ok") != false || closed.text("problems", "0", "code") != "address_unreachable" || closed.at("server_version") != nil {
		t.Errorf("%s", closed.Text)
	}
	for _, path := range []string{at, at + "/test"} {
		do(call{method: "POST", path: path, body: `{"name":"x","url":"postgres://ada@10.0.0.1/ada"}`}).is(400, "address_refused")
	}
	do(call{method: "POST", path: at, body: `{"name":"x","url":"postgres://ada@192.0.2.1/ada?sslmode=disable"}`}).is(400)
	do(call{method: "POST", path: at, body: `{"name":"x","url":"postgres://ada@1.1.1.1/ada?sslmode=disable"}`}).is(400, "tls_required")
	if a := do(call{method: "GET", path: at}).is(200); len(a.at("data").([]any)) != 1 {
		t.Errorf("a test was stored: %s", a.Text)
	}

	once := map[string]string{"Idempotency-Key": "register-1"}
	body := `{"name":"Mine","url":"` + own + `"}`
	made := do(call{method: "POST", path: at, body: body, header: once}).is(201)
	id := made.text("id")
	if made.text("kind") != "external_postgres" || made.text("state") != "ready" || made.text("host") != "127.0.0.1" || made.at("active") != false ||
		made.Header.Get("Location") != at+"/"+id || made.Header.Get("ETag") != `"1"` || made.text("username") == "" {
		t.Errorf("%v %s", made.Header, made.Text)
	}
	if again := do(call{method: "POST", path: at, body: body, header: once}).is(201); again.text("id") != id || again.Header.Get("Idempotency-Replayed") != "true" {
		t.Errorf("%s", again.Text)
	}
	do(call{method: "POST", path: at, body: `{"name":"Other","url":"` + own + `"}`, header: once}).is(422)
	tested := do(call{method: "POST", path: at + "/test", body: `{"id":"` + id + `"}`}).is(200)
	if tested.at("ok") != true || do(call{method: "GET", path: at + "/" + id}).at("checked_at") == nil {
		t.Errorf("%s", tested.Text)
	}

	// What was said before the move is there after it.
	conv := h.make("ada", "/api/v1/conversations", `{"title":"Before"}`)
	do(call{method: "POST", path: messages(conv), body: `{"content":"said before"}`}).is(201)
	once["Idempotency-Key"] = "activate-1"
	started := do(call{method: "POST", path: at + "/" + id + "/activate", header: once}).is(202)
	jobID := started.text("id")
	if started.Header.Get("Location") != "/api/v1/jobs/"+jobID || started.text("kind") != "database.move" {
		t.Errorf("%v %s", started.Header, started.Text)
	}
	if again := do(call{method: "POST", path: at + "/" + id + "/activate", header: once}).is(202); again.text("id") != jobID || again.Header.Get("Idempotency-Replayed") != "true" {
		t.Errorf("%s", again.Text)
	}
	moved := h.ended("ada", jobID)
	said += moved.Text
	if moved.text("state") != "completed" || moved.text("report", "to") != id || moved.at("progress", "done") != moved.at("progress", "total") ||
		moved.text("progress", "unit") != "rows" || moved.at("started_at") == nil || moved.at("finished_at") == nil {
		t.Fatalf("%s", moved.Text)
	}
	do(call{method: "POST", path: "/api/v1/jobs/" + jobID + "/cancel"}).is(409, "job_finished")
	if a := do(call{method: "GET", path: messages(conv)}).is(200); !strings.Contains(a.Text, "said before") {
		t.Errorf("%s", a.Text)
	}
	do(call{method: "POST", path: messages(conv), body: `{"content":"said after"}`}).is(201)
	now := do(call{method: "GET", path: at}).is(200)
	if now.text("data", "0", "id") != id || now.at("data", "0", "active") != true || now.at("data", "0", "size_bytes") == nil ||
		now.text("data", "1", "id") != hosted || now.text("data", "1", "state") != "original" {
		t.Errorf("%s", now.Text)
	}

	// Where the data lives is not let go of, and credentials are replaced while it is used.
	do(call{method: "DELETE", path: at + "/" + id}).is(409, "database_in_use")
	do(call{method: "POST", path: at + "/" + id + "/release"}).is(409, "database_in_use")
	do(call{method: "POST", path: at + "/" + id + "/activate"}).is(409, "database_in_use")
	do(call{method: "PATCH", path: at + "/" + id, body: `{"host":"db.example.org","password":"x"}`}).is(409, "database_in_use")
	do(call{method: "PATCH", path: at + "/" + id, body: `{"password":"` + secret + `"}`}).is(200)
	do(call{method: "POST", path: messages(conv), body: `{"content":"with new credentials"}`}).is(201)

	// Back: the original is where it was, brought up to date.
	back := do(call{method: "POST", path: at + "/" + hosted + "/activate"}).is(202)
	if a := h.ended("ada", back.text("id")); a.text("state") != "completed" {
		t.Fatalf("%s", a.Text)
	}
	if a := do(call{method: "GET", path: messages(conv)}).is(200); !strings.Contains(a.Text, "said after") || !strings.Contains(a.Text, "with new credentials") {
		t.Errorf("%s", a.Text)
	}
	do(call{method: "DELETE", path: at + "/" + id}).is(409, "database_kept")
	if a := do(call{method: "POST", path: at + "/" + id + "/release"}).is(200); a.text("state") != "released" {
		t.Errorf("%s", a.Text)
	}
	do(call{method: "POST", path: at + "/" + id + "/activate"}).is(409, "database_released")
	do(call{method: "POST", path: at + "/test", body: `{"id":"` + id + `"}`}).is(409, "database_released")
	do(call{method: "DELETE", path: at + "/" + hosted}).is(409)
	do(call{method: "DELETE", path: at + "/" + id, header: map[string]string{"If-Match": `"77"`}}).is(412)
	do(call{method: "DELETE", path: at + "/" + id}).is(204)
	do(call{method: "GET", path: at + "/" + id}).is(404)

	if len(secret) < 8 {
		t.Fatal("the password is too short to be looked for")
	}
	for name, text := range map[string]string{"an answer": said, "the log": h.log.String()} {
		if strings.Contains(text, secret) {
			t.Errorf("%s holds the password", name)
		}
	}
	trail := do(call{method: "GET", path: "/api/v1/audit?action=database.*"}).is(200)
	for _, action := range []string{"database.created", "database.activation_started", "database.activated", "database.updated", "database.released", "database.deleted"} {
		if !strings.Contains(trail.Text, action) {
			t.Errorf("the trail lacks %s", action)
		}
	}
}

func TestAddressesOfDatabasesAreChecked(t *testing.T) {
	h := newHouse(t)
	const canary = "canary-of-a-password"
	long := strings.Repeat("x", 101)
	for name, c := range map[string]struct{ body, location string }{
		"both forms":         {`{"name":"N","url":"postgres://a:` + canary + `@h.example/d","host":"h.example"}`, "body.url"},
		"neither form":       {`{"name":"N"}`, "body.url"},
		"no name":            {`{"url":"postgres://a:` + canary + `@h.example/d"}`, "body"},
		"empty name":         {`{"name":" ","url":"postgres://a:` + canary + `@h.example/d"}`, "body.name"},
		"long name":          {`{"name":"` + long + `","url":"postgres://a@h.example/d"}`, "body.name"},
		"another database":   {`{"name":"N","kind":"mysql","host":"h.example","database":"d","username":"u"}`, "body.kind"},
		"another scheme":     {`{"name":"N","url":"mysql://a:` + canary + `@h.example/d"}`, "body.url"},
		"two hosts":          {`{"name":"N","url":"postgres://a:` + canary + `@h.example,i.example/d"}`, "body.url"},
		"a parameter":        {`{"name":"N","url":"postgres://a:` + canary + `@h.example/d?passfile=/etc/passwd"}`, "body.url"},
		"weaker TLS":         {`{"name":"N","host":"h.example","database":"d","username":"u","tls":"prefer"}`, "body.tls"},
		"a socket":           {`{"name":"N","host":"/var/run/postgresql","database":"d","username":"u"}`, "body.host"},
		"no database":        {`{"name":"N","host":"h.example","username":"u","password":"` + canary + `"}`, "body.database"},
		"no user":            {`{"name":"N","host":"h.example","database":"d"}`, "body.username"},
		"a port that is not": {`{"name":"N","host":"h.example","port":70000,"database":"d","username":"u"}`, "body.port"},
		"an unknown field":   {`{"name":"N","url":"postgres://a@h.example/d","sslmode":"disable"}`, "body.sslmode"},
		"a bad password":     {`{"name":"N","host":"h.example","database":"d","username":"u","password":"` + canary + `\u0001"}`, "body.password"},
	} {
		t.Run(name, func(t *testing.T) {
			h := *h
			h.t = t
			a := h.do(call{as: "ada", method: "POST", path: "/api/v1/database", body: c.body}).is(400, "invalid_input")
			found := false
			for i := range a.at("errors").([]any) {
				found = found || a.text("errors", fmt.Sprint(i), "location") == c.location
			}
			if !found {
				t.Errorf("nothing at %s: %s", c.location, a.Text)
			}
			if strings.Contains(a.Text, canary) {
				t.Errorf("the password comes back: %s", a.Text)
			}
		})
	}
	if strings.Contains(h.log.String(), canary) {
		t.Error("the log holds a password")
	}
	if a := h.do(call{as: "ada", method: "GET", path: "/api/v1/database"}).is(200); len(a.at("data").([]any)) != 1 {
		t.Errorf("something was stored: %s", a.Text)
	}
	ipv6 := h.do(call{as: "ada", method: "POST", path: "/api/v1/database", body: `{"name":"N","url":"postgres://u@[2606:4700::1111]/d"}`}).is(201)
	if ipv6.text("host") != "2606:4700::1111" || ipv6.at("port") != 5432.0 || ipv6.text("tls") != "verify-full" {
		t.Errorf("%s", ipv6.Text)
	}
	required := h.do(call{as: "ada", method: "POST", path: "/api/v1/database", body: `{"name":"N","host":"h.example","database":"d","username":"u","tls":"require"}`}).is(201)
	if required.text("tls") != "verify-full" || required.at("port") != 5432.0 {
		t.Errorf("%s", required.Text)
	}
	h.do(call{as: "ada", method: "POST", path: "/api/v1/database/test", body: `{"id":"` + required.text("id") + `","url":"postgres://a@h.example/d"}`}).is(400)
	h.do(call{as: "ada", method: "POST", path: "/api/v1/database/test", body: `{}`}).is(400)
	h.do(call{as: "ada", method: "POST", path: "/api/v1/database/test", body: `{"id":"nonsense"}`}).is(404)
}

func TestEditingADatabase(t *testing.T) {
	h := newHouse(t)
	path := "/api/v1/database/" + h.make("ada", "/api/v1/database", `{"name":"Mine","url":"postgres://ada:first-secret@db.example.org/ada"}`)
	patch := func(body, match string) answer {
		t.Helper()
		return h.do(call{as: "ada", method: "PATCH", path: path, body: body, header: map[string]string{"If-Match": match, "Content-Type": "application/merge-patch+json"}})
	}
	if a := patch(`{"name":"Renamed"}`, `"1"`).is(200); a.text("name") != "Renamed" || a.text("host") != "db.example.org" || a.Header.Get("ETag") != `"2"` {
		t.Errorf("%s", a.Text)
	}
	patch(`{"name":"Late"}`, `"1"`).is(412)
	if a := patch(`{"name":"Renamed"}`, "").is(200); a.Header.Get("ETag") != `"2"` {
		t.Errorf("an edit that edits nothing counts: %s", a.Text)
	}
	if a := patch(`{"database":"other","username":"eve"}`, "").is(200); a.text("database") != "other" || a.text("username") != "eve" || a.at("port") != 5432.0 {
		t.Errorf("%s", a.Text)
	}
	// A stored password goes nowhere that it was not given for.
	for _, body := range []string{`{"host":"evil.example.org"}`, `{"port":5433}`, `{"tls":"disable"}`, `{"url":"postgres://ada@evil.example.org/ada"}`} {
		a := patch(body, "").is(400, "invalid_input")
		if a.text("errors", "0", "location") != "body.password" {
			t.Errorf("%s: %s", body, a.Text)
		}
	}
	if a := patch(`{"host":"new.example.org","password":"second-secret"}`, "").is(200); a.text("host") != "new.example.org" {
		t.Errorf("%s", a.Text)
	}
	if a := patch(`{"url":"postgres://bob:third-secret@third.example.org:6000/bob"}`, "").is(200); a.text("host") != "third.example.org" ||
		a.at("port") != 6000.0 || a.text("username") != "bob" || a.text("name") != "Renamed" {
		t.Errorf("%s", a.Text)
	}
	if a := patch(`{"password":null}`, "").is(200); strings.Contains(a.Text, "secret") {
		t.Errorf("%s", a.Text)
	}
	patch(`{"host":"fourth.example.org"}`, "").is(200) // there is no password any more that could go there
	patch(`{"url":"postgres://a@b.example/c","host":"d.example"}`, "").is(400, "invalid_input")
	patch(`{"name":null}`, "").is(400)
	patch(`{"host":""}`, "").is(400, "invalid_input")
	patch(`{"kind":"postgres"}`, "").is(400, "invalid_input")
	hosted := "/api/v1/database/" + h.hosted("ada")
	if a := h.do(call{as: "ada", method: "PATCH", path: hosted, body: `{"name":"Home"}`}).is(200); a.text("name") != "Home" || a.at("host") != nil {
		t.Errorf("%s", a.Text)
	}
	h.do(call{as: "ada", method: "PATCH", path: hosted, body: `{"url":"postgres://a:b@c.example/d"}`}).is(409, "database_hosted")
	h.do(call{as: "ada", method: "PATCH", path: hosted, body: `{"password":"x"}`}).is(409, "database_hosted")
	if strings.Contains(h.log.String(), "-secret") {
		t.Error("the log holds a password")
	}
}

func TestListsOfDatabasesAndJobsArePaged(t *testing.T) {
	h := newHouse(t)
	var want []string
	for i := range 4 {
		want = append([]string{h.make("ada", "/api/v1/database", fmt.Sprintf(`{"name":"D%d","url":"postgres://a@h.example/d"}`, i))}, want...)
	}
	pages := func(path string) (ids []string) {
		t.Helper()
		for cursor := ""; ; {
			a := h.do(call{as: "ada", method: "GET", path: path + "&limit=2&cursor=" + url.QueryEscape(cursor)}).is(200)
			for i := range a.at("data").([]any) {
				ids = append(ids, a.text("data", fmt.Sprint(i), "id"))
			}
			if len(ids) == 2 { // what is added meanwhile shifts nothing
				h.make("ada", "/api/v1/database", `{"name":"Late","url":"postgres://a@h.example/d"}`)
			}
			if cursor = a.text("next_cursor"); cursor == "" {
				return ids
			}
		}
	}
	got := pages("/api/v1/database?x=")
	if fmt.Sprint(got) != fmt.Sprint(append(want, h.hosted("ada"))) {
		t.Errorf("%v, want %v", got, want)
	}
	h.do(call{as: "ada", method: "GET", path: "/api/v1/database?cursor=nonsense"}).is(400, "invalid_input")

	// Nobody runs jobs here, so they stay queued, and are cancelled at once.
	var jobs []string
	for _, id := range want[:3] {
		j := h.do(call{as: "ada", method: "POST", path: "/api/v1/database/" + id + "/activate"}).is(202).text("id")
		h.do(call{as: "ada", method: "POST", path: "/api/v1/database/" + id + "/activate"}).is(409, "tenant_busy")
		if a := h.do(call{as: "ada", method: "POST", path: "/api/v1/jobs/" + j + "/cancel"}).is(200); a.text("state") != "cancelled" || a.at("finished_at") == nil {
			t.Errorf("%s", a.Text)
		}
		jobs = append([]string{j}, jobs...)
	}
	if got := pages("/api/v1/jobs?state=cancelled&kind=database.move"); fmt.Sprint(got) != fmt.Sprint(jobs) {
		t.Errorf("%v, want %v", got, jobs)
	}
	if got := pages("/api/v1/jobs?state=completed"); len(got) != 0 {
		t.Errorf("%v", got)
	}
	h.do(call{as: "ada", method: "GET", path: "/api/v1/jobs?state=asleep"}).is(400, "invalid_input")
	for range 20 {
		if h.do(call{as: "bob", method: "POST", path: "/api/v1/database", body: `{"name":"D","url":"postgres://a@h.example/d"}`}).Status != 201 {
			break
		}
	}
	h.do(call{as: "bob", method: "POST", path: "/api/v1/database", body: `{"name":"D","url":"postgres://a@h.example/d"}`}).is(409, "too_many_databases")
}

func TestDatabasesAndJobsAreThereWhileTheDataIsNot(t *testing.T) {
	h := newHouse(t)
	raw, link := toxic.Slow(t, pgtest.URL(t), 0)
	id := h.toOwn("ada", raw)
	h.do(call{as: "ada", method: "GET", path: "/api/v1/conversations"}).is(200)
	link.Hang() // the worst case: it neither answers nor refuses
	h.do(call{as: "ada", method: "GET", path: "/api/v1/conversations"}).is(503)
	list := h.do(call{as: "ada", method: "GET", path: "/api/v1/database"}).is(200)
	if list.text("data", "0", "id") != id || list.text("data", "0", "problem") == "" || list.at("data", "0", "active") != true {
		t.Errorf("%s", list.Text)
	}
	if a := h.do(call{as: "ada", method: "POST", path: "/api/v1/database/test", body: `{"id":"` + id + `"}`}).is(200); a.at("ok") != false {
		t.Errorf("%s", a.Text)
	}
	h.do(call{as: "ada", method: "PATCH", path: "/api/v1/database/" + id, body: `{"name":"Away"}`}).is(200)
	h.do(call{as: "ada", method: "GET", path: "/api/v1/jobs"}).is(200)
	h.do(call{as: "bob", method: "GET", path: "/api/v1/conversations"}).is(200)
	link.Restore()
	if a := h.do(call{as: "ada", method: "POST", path: "/api/v1/database/test", body: `{"id":"` + id + `"}`}).is(200); a.at("ok") != true || a.text("schema") != "ours" {
		t.Errorf("%s", a.Text)
	}
}

// TestARefusedLoginIsSaidEverywhere: what keeps the server out of a user's database is told alike by requests, by the test
// call, by the list and by the configuration itself, however often it was tried.
func TestARefusedLoginIsSaidEverywhere(t *testing.T) {
	h := newHouse(t)
	raw := pgtest.URL(t)
	super, err := pgx.Connect(t.Context(), raw)
	if err != nil {
		t.Fatal(err)
	}
	login := "own_" + strings.ToLower(rand.Text())
	do := func(statement string) (n int) {
		t.Helper()
		if err := super.QueryRow(context.Background(), statement).Scan(&n); err != nil && !errors.Is(err, pgx.ErrNoRows) {
			t.Fatal(err)
		}
		return n
	}
	do(`CREATE ROLE ` + login + ` LOGIN PASSWORD 'first'`)
	t.Cleanup(func() {
		do(`DROP OWNED BY ` + login + ` CASCADE`)
		do(`DROP ROLE ` + login)
		_ = super.Close(context.Background())
	})
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	do(`GRANT CREATE ON DATABASE "` + strings.Trim(u.Path, "/") + `" TO ` + login)
	u.User = url.UserPassword(login, "first")
	id := h.toOwn("ada", u.String())
	get := call{as: "ada", method: "GET", path: "/api/v1/conversations"}
	one, list := call{as: "ada", method: "GET", path: "/api/v1/database/" + id}, call{as: "ada", method: "GET", path: "/api/v1/database"}
	test := call{as: "ada", method: "POST", path: "/api/v1/database/test", body: `{"id":"` + id + `"}`}
	h.do(get).is(200)

	do(`ALTER ROLE ` + login + ` PASSWORD 'second'`)
	do(`SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = '` + login + `'`)
	for do(`SELECT count(*) FROM pg_stat_activity WHERE usename = '`+login+`'`) > 0 {
		time.Sleep(10 * time.Millisecond) // nothing announces that they are gone
	}
	same := func(problem any) {
		t.Helper()
		a, b := h.do(one).is(200), h.do(list).is(200)
		if a.at("problem") != problem || b.text("data", "0", "id") != id || b.at("data", "0", "problem") != problem || a.text("checked_at") != b.text("data", "0", "checked_at") {
			t.Errorf("%s\n%s\nwant %v", a.Text, b.Text, problem)
		}
	}
	same("login_refused")
	for range 5 {
		if a := h.do(get).is(503, "login_refused"); a.Header.Get("Retry-After") == "" {
			t.Errorf("%v", a.Header)
		}
	}
	if a := h.do(test).is(200); a.at("ok") != false || a.at("reachable") != true || a.text("problems", "0", "code") != "login_refused" {
		t.Errorf("%s", a.Text)
	}
	h.do(get).is(503, "login_refused")
	same("login_refused")

	do(`ALTER ROLE ` + login + ` PASSWORD 'first'`)
	if a := h.do(test).is(200); a.at("ok") != true {
		t.Errorf("%s", a.Text)
	}
	same(nil)
	for deadline := time.Now().Add(time.Minute); h.do(get).Status != 200; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it is not tried again")
		}
	}
}

func TestErasing(t *testing.T) {
	h := newHouse(t, patient)
	h.work()
	const path = "/api/v1/auth/profile/erase"
	h.make("ada", "/api/v1/conversations", `{"title":"Secret"}`)
	h.do(call{as: "ada", method: "POST", path: path, body: `{"password":"a guess","what":"data"}`}).is(403, "wrong_password")
	h.do(call{as: "ada", method: "POST", path: path, body: `{"password":"` + password + `","what":"everything"}`}).is(400, "invalid_input")
	h.do(call{as: "ada", method: "POST", path: path, body: `{"password":"` + password + `"}`}).is(400, "invalid_input")
	emptied := h.do(call{as: "ada", method: "POST", path: path, body: `{"password":"` + password + `","what":"data"}`}).is(200)
	if emptied.text("state") != "completed" || emptied.text("receipt", "what") != "data" || emptied.text("receipt", "signature") == "" ||
		len(cookiesOf(emptied)) != 0 || len(h.people.forgot) != 0 {
		t.Errorf("%v %s", emptied.Header, emptied.Text)
	}
	if a := h.do(call{as: "ada", method: "GET", path: "/api/v1/conversations"}).is(200); len(a.at("data").([]any)) != 0 {
		t.Errorf("%s", a.Text)
	}
	job := h.do(call{as: "ada", method: "GET", path: "/api/v1/jobs/" + emptied.text("job_id")}).is(200)
	if job.text("kind") != "data.erase" || job.text("report", "signature") != emptied.text("receipt", "signature") {
		t.Errorf("%s", job.Text)
	}
	erased := h.do(call{as: "ada", method: "POST", path: path, body: `{"password":"` + password + `","what":"account"}`}).is(200)
	if erased.text("receipt", "what") != "account" || len(h.people.forgot) != 1 {
		t.Errorf("%s", erased.Text)
	}
	for _, name := range []string{accessCookie, refreshCookie} {
		if c := cookiesOf(erased)[name]; c == nil || c.MaxAge >= 0 {
			t.Errorf("%s stays", name)
		}
	}
	h.do(call{as: "bob", method: "GET", path: "/api/v1/conversations"}).is(200)
	if strings.Contains(h.log.String(), password) {
		t.Error("the log holds a password")
	}
}

func TestErasingTakesLongerThanTheRequest(t *testing.T) {
	h := newHouse(t, func(c *Config, _ *Deps) { c.EraseTime = time.Millisecond }) // and nobody runs jobs yet
	const path = "/api/v1/auth/profile/erase"
	a := h.do(call{as: "ada", method: "POST", path: path, body: `{"password":"` + password + `","what":"data"}`}).is(202)
	if a.text("state") != "queued" || len(a.at("receipt").(map[string]any)) != 0 {
		t.Errorf("%s", a.Text)
	}
	h.do(call{as: "ada", method: "POST", path: "/api/v1/jobs/" + a.text("job_id") + "/cancel"}).is(409, "job_uncancellable")
	h.do(call{as: "ada", method: "POST", path: path, body: `{"password":"` + password + `","what":"data"}`}).is(409, "tenant_busy")
	h.work()
	if done := h.ended("ada", a.text("job_id")); done.text("state") != "completed" {
		t.Errorf("%s", done.Text)
	}
}
