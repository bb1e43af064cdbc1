package httpapi

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"claude-memory-backend/internal/ident"
)

func TestProjects(t *testing.T) {
	h := newHouse(t)
	made := h.do(call{as: "ada", method: "POST", path: "/api/v1/projects",
		body: `{"name":"Harbour","tags":["novel"],"settings":{"b":{"c":1,"d":2}},"deadline":"2027-01-31T12:00:00+02:00"}`}).is(201)
	id := made.text("id")
	place := "/api/v1/projects/" + id
	if made.Header.Get("Location") != place || made.Header.Get("ETag") != `"1"` || made.text("status") != "active" ||
		made.text("priority") != "medium" || made.text("role") != "owner" || made.text("owner", "name") != "ada" ||
		made.text("deadline") != "2027-01-31T10:00:00Z" || made.at("conversation_count") != 0.0 {
		t.Errorf("made: %v %s", made.Header, made.Text)
	}
	if got := h.do(call{as: "ada", method: "GET", path: place}).is(200); got.text("name") != "Harbour" || got.Header.Get("ETag") != `"1"` {
		t.Errorf("read: %s", got.Text)
	}
	t.Run("PATCH merges and null resets", func(t *testing.T) {
		got := h.do(call{as: "ada", method: "PATCH", path: place, header: map[string]string{"If-Match": `"1"`,
			"Content-Type": "application/merge-patch+json"},
			body: `{"priority":"high","tags":null,"settings":{"b":{"d":null},"e":[1]},"deadline":null}`}).is(200)
		if got.text("priority") != "high" || fmt.Sprint(got.at("tags")) != "[]" || got.text("name") != "Harbour" ||
			fmt.Sprint(got.at("settings")) != "map[b:map[c:1] e:[1]]" || got.at("deadline") != nil || got.Header.Get("ETag") != `"2"` {
			t.Errorf("patched: %s", got.Text)
		}
		if got := h.do(call{as: "ada", method: "PATCH", path: place, body: `{"priority":null}`}).is(200); got.text("priority") != "medium" {
			t.Errorf("reset: %s", got.Text)
		}
	})
	t.Run("PUT replaces and absent fields take their defaults", func(t *testing.T) {
		got := h.do(call{as: "ada", method: "PUT", path: place, body: `{"name":"Port","status":"archived"}`}).is(200)
		if got.text("name") != "Port" || got.text("status") != "archived" || fmt.Sprint(got.at("settings")) != "map[]" {
			t.Errorf("replaced: %s", got.Text)
		}
	})
	t.Run("If-Match", func(t *testing.T) {
		for tag, status := range map[string]int{`"1"`: 412, `"99"`: 412, `W/"4"`: 412, `"x"`: 412, `*`: 200, `4`: 400, `"`: 400, `""`: 400, `"4"`: 200} {
			h.do(call{as: "ada", method: "PATCH", path: place, body: `{}`, header: map[string]string{"If-Match": tag}}).is(status)
		}
		h.do(call{as: "ada", method: "DELETE", path: place, header: map[string]string{"If-Match": `"1"`}}).is(412, "stale_version")
	})
	t.Run("deleting keeps its conversations unless asked", func(t *testing.T) {
		kept := h.make("ada", "/api/v1/conversations", `{"project_id":"`+id+`"}`)
		h.do(call{as: "ada", method: "DELETE", path: place + "?conversations=maybe"}).is(400, "invalid_input")
		if a := h.do(call{as: "ada", method: "DELETE", path: place}).is(204); a.Text != "" {
			t.Errorf("204 with a body: %s", a.Text)
		}
		if got := h.do(call{as: "ada", method: "GET", path: "/api/v1/conversations/" + kept}).is(200); got.at("project_id") != nil {
			t.Errorf("kept: %s", got.Text)
		}
		other := h.make("ada", "/api/v1/projects", `{"name":"Gone"}`)
		dropped := h.make("ada", "/api/v1/conversations", `{"project_id":"`+other+`"}`)
		h.do(call{as: "ada", method: "DELETE", path: "/api/v1/projects/" + other + "?conversations=delete"}).is(204)
		h.do(call{as: "ada", method: "GET", path: "/api/v1/conversations/" + dropped}).is(404)
		h.do(call{as: "ada", method: "DELETE", path: place}).is(404)
	})
}

func TestListsPage(t *testing.T) {
	h := newHouse(t)
	var made []string
	for i := range 5 {
		made = append([]string{h.make("ada", "/api/v1/projects", fmt.Sprintf(`{"name":"P%d"}`, i))}, made...)
	}
	var seen []string
	cursor := ""
	for {
		page := h.do(call{as: "ada", method: "GET", path: "/api/v1/projects?limit=2&cursor=" + url.QueryEscape(cursor)}).is(200)
		for _, p := range page.at("data").([]any) {
			seen = append(seen, p.(map[string]any)["id"].(string))
		}
		// What comes while somebody reads moves nothing.
		h.make("ada", "/api/v1/projects", `{"name":"late"}`)
		if page.at("next_cursor") == nil {
			break
		}
		cursor = page.text("next_cursor")
	}
	if strings.Join(seen, " ") != strings.Join(made, " ") {
		t.Errorf("seen %v, made %v", seen, made)
	}
	for query, location := range map[string]string{"limit=0": "query.limit", "limit=201": "query.limit", "limit=x": "query.limit",
		"cursor=nonsense": "query.cursor", "status=odd": "query.status", "q=%00": "query.q", "q=%ff": "query.q", "q=%zz": "query"} {
		if a := h.do(call{as: "ada", method: "GET", path: "/api/v1/projects?" + query}).is(400, "invalid_input"); a.text("errors", "0", "location") != location {
			t.Errorf("%s: %s", query, a.Text)
		}
	}
	h.do(call{as: "ada", method: "GET", path: "/api/v1/projects?limit=200"}).is(200)
	if a := h.do(call{as: "bob", method: "GET", path: "/api/v1/projects"}).is(200); a.Text != `{"data":[],"next_cursor":null}`+"\n" {
		t.Errorf("an empty list: %s", a.Text)
	}
}

func TestConversations(t *testing.T) {
	h := newHouse(t)
	project := h.make("ada", "/api/v1/projects", `{"name":"P"}`)
	made := h.do(call{as: "ada", method: "POST", path: "/api/v1/conversations", body: `{}`}).is(201)
	if made.at("importance_level") != 3.0 || made.text("status") != "active" || made.text("title") != "" ||
		made.at("project_id") != nil || made.at("leaf_id") != nil || made.at("last_message_at") != nil {
		t.Errorf("defaults: %s", made.Text)
	}
	for _, name := range []string{"id", "title", "project_id", "description", "status", "importance_level", "tags", "system",
		"settings", "message_count", "leaf_id", "creator", "version", "created_at", "updated_at", "last_message_at"} {
		if !strings.Contains(made.Text, `"`+name+`":`) {
			t.Errorf("%s is missing: %s", name, made.Text)
		}
	}
	place := "/api/v1/conversations/" + made.text("id")
	got := h.do(call{as: "ada", method: "PATCH", path: place, body: `{"title":"T","project_id":"` + project + `","tags":["a","b"],"importance_level":9}`}).is(200)
	if got.text("project_id") != project || got.at("importance_level") != 9.0 {
		t.Errorf("patched: %s", got.Text)
	}
	got = h.do(call{as: "ada", method: "PATCH", path: place, body: `{"project_id":null,"importance_level":null}`}).is(200)
	if got.at("project_id") != nil || got.at("importance_level") != 3.0 || got.text("title") != "T" {
		t.Errorf("reset: %s", got.Text)
	}
	for body, location := range map[string]string{
		`{"importance_level":0}`:  "body.importance_level",
		`{"importance_level":11}`: "body.importance_level",
		`{"status":"odd"}`:        "body.status",
		`{"title":7}`:             "body.title",
		`{"project_id":"` + string(ident.New[ident.ProjectID]()) + `"}`: "body.project_id",
		`{"project_id":"nonsense"}`:                                     "body.project_id",
		`{"tags":["a","a"]}`:                                            "body.tags[1]",
		`{"provider":"odd"}`:                                            "body.provider",
	} {
		if a := h.do(call{as: "ada", method: "PATCH", path: place, body: body}).is(400, "invalid_input"); a.text("errors", "0", "location") != location {
			t.Errorf("%s: %s", body, a.Text)
		}
	}
	for query, n := range map[string]int{"tag=a": 1, "tag=z": 0, "status=active": 1, "q=t": 1, "sort=title": 1, "importance_level=3": 1,
		"importance_level=4": 0, "project_id=" + project: 0, "project_id=nonsense": 0, "sort=last_message_at&order=asc": 1} {
		if a := h.do(call{as: "ada", method: "GET", path: "/api/v1/conversations?" + query}).is(200); len(a.at("data").([]any)) != n {
			t.Errorf("%s: %s", query, a.Text)
		}
	}
	h.do(call{as: "ada", method: "GET", path: "/api/v1/conversations?sort=odd"}).is(400, "invalid_input")
	h.do(call{as: "ada", method: "DELETE", path: place}).is(204)
	h.do(call{as: "ada", method: "GET", path: place}).is(404, "not_found")
}

func TestIdempotency(t *testing.T) {
	h := newHouse(t)
	key := map[string]string{"Idempotency-Key": "k1"}
	first := h.do(call{as: "ada", method: "POST", path: "/api/v1/projects", body: `{"name":"P","tags":["x"]}`, header: key}).is(201)
	again := h.do(call{as: "ada", method: "POST", path: "/api/v1/projects", body: `{ "tags" : ["x"], "name" : "P" }`, header: key}).is(201)
	if again.Text != first.Text || again.Header.Get("Idempotency-Replayed") != "true" || first.Header.Get("Idempotency-Replayed") != "" {
		t.Errorf("first %s again %s %v", first.Text, again.Text, again.Header)
	}
	h.do(call{as: "ada", method: "POST", path: "/api/v1/projects", body: `{"name":"Q"}`, header: key}).is(422, "idempotency_mismatch")
	if bobs := h.do(call{as: "bob", method: "POST", path: "/api/v1/projects", body: `{"name":"Q"}`, header: key}).is(201); bobs.text("name") != "Q" {
		t.Error("a key reached into another account")
	}
	h.do(call{as: "ada", method: "POST", path: "/api/v1/conversations", body: `{}`, header: key}).is(201)
	for _, bad := range []string{strings.Repeat("x", 256), "ä", "a\tb"} {
		h.do(call{as: "ada", method: "POST", path: "/api/v1/projects", body: `{"name":"P"}`,
			header: map[string]string{"Idempotency-Key": bad}}).is(400, "invalid_input")
	}
	conv := h.make("ada", "/api/v1/conversations", `{}`)
	send := call{as: "ada", method: "POST", path: "/api/v1/conversations/" + conv + "/messages", body: `{"content":"once"}`,
		header: map[string]string{"Idempotency-Key": "send"}}
	one, two := h.do(send).is(201), h.do(send).is(201)
	if one.Text != two.Text || two.Header.Get("Idempotency-Replayed") != "true" {
		t.Errorf("sent twice: %s and %s", one.Text, two.Text)
	}
	if a := h.do(call{as: "ada", method: "GET", path: "/api/v1/conversations/" + conv + "/messages"}); len(a.at("data").([]any)) != 2 {
		t.Errorf("messages: %s", a.Text)
	}
	h.do(call{as: "ada", method: "POST", path: send.path, body: `{"content":"twice"}`, header: send.header}).is(422)
}

func TestBodies(t *testing.T) {
	h := newHouse(t, func(c *Config, _ *Deps) { c.BodyLimit = 2000; c.MessageLimit = 4000 })
	conv := h.make("ada", "/api/v1/conversations", `{}`)
	deep := strings.Repeat(`{"a":`, 200) + "1" + strings.Repeat("}", 200)
	for name, c := range map[string]struct {
		body   string
		header map[string]string
		status int
		code   string
		in     string
	}{
		"nothing":              {"", nil, 400, "malformed_json", ""},
		"no JSON":              {"{", nil, 400, "malformed_json", "body"},
		"an array":             {"[]", nil, 400, "malformed_json", "body"},
		"null":                 {"null", nil, 400, "malformed_json", "body"},
		"two values":           {`{"name":"a"} {}`, nil, 400, "malformed_json", "body"},
		"a key twice":          {`{"name":"a","name":"b"}`, nil, 400, "malformed_json", "body"},
		"a key twice, deep":    {`{"name":"a","settings":{"x":1,"x":2}}`, nil, 400, "malformed_json", "body"},
		"a key in both cases":  {`{"name":"a","Name":"b"}`, nil, 400, "invalid_input", "body.Name"},
		"a key in another":     {`{"NAME":"a"}`, nil, 400, "invalid_input", "body.NAME"},
		"an unknown field":     {`{"name":"a","owner":"me"}`, nil, 400, "invalid_input", "body.owner"},
		"a read-only field":    {`{"name":"a","version":3}`, nil, 400, "invalid_input", "body.version"},
		"the wrong type":       {`{"name":["a"]}`, nil, 400, "invalid_input", "body.name"},
		"the name missing":     {`{"description":"a"}`, nil, 400, "invalid_input", "body"},
		"an empty name":        {`{"name":""}`, nil, 400, "invalid_input", "body.name"},
		"a NUL":                {`{"name":"a\u0000b"}`, nil, 400, "invalid_input", "body.name"},
		"bad UTF-8":            {"{\"name\":\"\xff\"}", nil, 400, "malformed_json", "body"},
		"settings no object":   {`{"name":"a","settings":[1]}`, nil, 400, "invalid_input", "body.settings"},
		"nested too deeply":    {`{"name":"a","settings":` + deep + `}`, nil, 400, "malformed_json", "body"},
		"a form":               {"name=a", map[string]string{"Content-Type": "application/x-www-form-urlencoded"}, 415, "unsupported_media_type", ""},
		"plain text":           {`{"name":"a"}`, map[string]string{"Content-Type": "text/plain"}, 415, "unsupported_media_type", ""},
		"another charset":      {`{"name":"a"}`, map[string]string{"Content-Type": "application/json; charset=latin1"}, 415, "unsupported_media_type", ""},
		"compressed":           {`{"name":"a"}`, map[string]string{"Content-Encoding": "gzip"}, 415, "unsupported_media_type", ""},
		"a merge patch":        {`{"name":"a"}`, map[string]string{"Content-Type": "application/merge-patch+json"}, 415, "unsupported_media_type", ""},
		"with charset":         {`{"name":"a"}`, map[string]string{"Content-Type": "application/json; charset=UTF-8"}, 201, "", ""},
		"without a type":       {`{"name":"a"}`, map[string]string{"Content-Type": ""}, 201, "", ""},
		"cases in settings":    {`{"name":"a","settings":{"a":1,"A":2}}`, nil, 201, "", ""},
		"over the limit":       {`{"name":"a","description":"` + strings.Repeat("x", 2000) + `"}`, nil, 413, "too_large", ""},
		"exactly at the limit": {`{"name":"a","description":"` + strings.Repeat("x", 2000-29) + `"}`, nil, 201, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			h := *h
			h.t = t
			a := h.do(call{as: "ada", method: "POST", path: "/api/v1/projects", body: c.body, header: c.header}).is(c.status)
			if c.code != "" && (a.text("code") != c.code || a.text("errors", "0", "location") != c.in) {
				t.Errorf("%s", a.Text)
			}
		})
	}
	h.do(call{as: "ada", method: "POST", path: "/api/v1/conversations/" + conv + "/messages", body: `{"reply":false,"content":"` + strings.Repeat("x", 3000) + `"}`}).is(201)
	h.do(call{as: "ada", method: "POST", path: "/api/v1/conversations/" + conv + "/messages", body: `{"content":"` + strings.Repeat("x", 4000) + `"}`}).is(413)
	if a := h.do(call{as: "ada", method: "POST", path: "/api/v1/auth/login", body: `{"email":"ada@example.org","password":["hunter2"]}`}).is(400); strings.Contains(a.Text, "hunter2") {
		t.Errorf("a password came back: %s", a.Text)
	}
}

func TestAudit(t *testing.T) {
	h := newHouse(t)
	id := h.make("ada", "/api/v1/projects", `{"name":"secret name"}`)
	a := h.do(call{as: "ada", method: "GET", path: "/api/v1/audit?action=project.*"}).is(200)
	if a.text("data", "0", "action") != "project.created" || a.text("data", "0", "subject") != id ||
		a.text("data", "0", "address") != "192.0.2.7" || a.text("data", "0", "actor", "name") != "ada" ||
		a.text("data", "0", "request_id") == "" || strings.Contains(a.Text, "secret name") {
		t.Errorf("%s", a.Text)
	}
	h.do(call{as: "ada", method: "GET", path: "/api/v1/audit?from=yesterday"}).is(400, "invalid_input")
	h.do(call{as: "ada", method: "GET", path: "/api/v1/audit?from=2026-01-01T00:00:00Z&to=2026-01-02T00:00:00Z"}).is(http.StatusOK)
}

func TestPathsThatAreNotThere(t *testing.T) {
	h := newHouse(t)
	for path, status := range map[string]int{"/": 404, "/api": 404, "/api/v1": 404, "/api/v1/nope": 404, "/api/v1//projects": 404,
		"/api/v1/projects/": 404, "/api/v1/../v1/projects": 404, "/api/v2/projects": 404, "/API/v1/projects": 404} {
		h.do(call{as: "ada", method: "GET", path: path}).is(status, "not_found")
	}
	if a := h.do(call{as: "ada", method: "DELETE", path: "/api/v1/projects"}).is(405, "method_not_allowed"); a.Header.Get("Allow") != "GET, HEAD, POST" {
		t.Errorf("Allow: %q", a.Header.Get("Allow"))
	}
	if a := h.do(call{as: "ada", method: "POST", path: "/api/v1/conversations/search", body: "{}"}); a.Status != 405 {
		t.Errorf("search took a POST: %d", a.Status)
	}
	h.do(call{as: "ada", method: "BREW", path: "/api/v1/projects"}).is(405)
	if a := h.do(call{method: "OPTIONS", path: "/api/v1/projects"}).is(204); a.Header.Get("Allow") == "" {
		t.Error("OPTIONS without Allow")
	}
	if a := h.do(call{as: "ada", method: "HEAD", path: "/api/v1/projects"}); a.Status != 200 {
		t.Errorf("HEAD: %d", a.Status)
	}
}
