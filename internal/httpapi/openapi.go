package httpapi

import (
	"bytes"
	"encoding/json"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/yaml"

	"claude-memory-backend/internal/fault"
)

// document is the OpenAPI description as it is served.
type document struct {
	json []byte
	yaml func() ([]byte, error) // made of json when somebody first asks, which at most servers nobody does
}

// description is huma's configuration: formats, names, and what the document says about the whole.
func (s *Server) description() huma.Config {
	namer := func(t reflect.Type, hint string) string {
		name := strings.ReplaceAll(huma.DefaultSchemaNamer(t, hint), "View", "")
		if name == "ExchangeTurn" {
			return "TurnWithMessages"
		}
		return name
	}
	return huma.Config{
		OpenAPI: &huma.OpenAPI{
			OpenAPI: "3.1.0",
			Info: &huma.Info{Title: "Claude Memory Backend", Version: s.cfg.Version,
				License: &huma.License{Name: "MIT", Identifier: "MIT"},
				Description: "Conversations with Claude, each user's data in a database of its own.\n\n" +
					"Identifiers are strings with a type prefix and sort by time of creation. Times are RFC 3339 in UTC. " +
					"Lists answer `{data, next_cursor}`; a cursor never skips or repeats an item while others are added. " +
					"Errors are problems (RFC 9457) with a stable `code`; `" + errorsPath + "` explains them all. " +
					"Unknown fields, and fields in another case, are refused. Resources that change carry an `ETag`; " +
					"`If-Match` guards an edit. `PUT` replaces, `PATCH` merges (RFC 7396). " +
					"Somebody else's identifier answers 404, as one that never was. " +
					"Every answer carries `X-Request-Id`; limited ones carry `RateLimit` and `RateLimit-Policy`; " +
					"one that waited for its tenant's database to be opened says so in `Server-Timing`."},
			Servers: []*huma.Server{{URL: "/", Description: "This server"}},
			Tags: []*huma.Tag{
				{Name: tagAuth, Description: "Accounts and sessions"},
				{Name: tagProjects, Description: "Projects group conversations and hand them instructions"},
				{Name: tagConversations, Description: "Conversations, their messages and search"},
				{Name: tagTurns, Description: "A turn is one request to a model and what comes of it"},
				{Name: tagN8N, Description: "What workflows of n8n call, by the address and the secret that they have"},
				{Name: tagDatabase, Description: "Where the account's data lives: hosted, or in a PostgreSQL of one's own"},
				{Name: tagJobs, Description: "Long work: how far it is, and what came of it"},
				{Name: tagLive, Description: "What happens, as it happens: WebSocket, and the log of events"},
				{Name: tagUsage, Description: "How much is kept, and how much may be"},
				{Name: tagAudit, Description: "Who did what, and when"},
				{Name: tagHealth, Description: "How the server is doing"},
			},
			Components: &huma.Components{
				Schemas: huma.NewMapRegistry("#/components/schemas/", namer),
				SecuritySchemes: map[string]*huma.SecurityScheme{
					"bearer": {Type: "http", Scheme: "bearer", BearerFormat: "JWT",
						Description: "The access token from registering, signing in or refreshing"},
					"cookie": {Type: "apiKey", In: "cookie", Name: accessCookie,
						Description: "Set when `cookie: true` was asked for"},
					"metrics": {Type: "http", Scheme: "bearer", Description: "METRICS_TOKEN"},
				},
			},
		},
		Formats:       map[string]huma.Format{"application/json": huma.DefaultJSONFormat, "json": huma.DefaultJSONFormat},
		DefaultFormat: "application/json",
		Transformers:  []huma.Transformer{restate},
	}
}

// describe finishes the document when every operation is mounted, and writes it out once.
func (s *Server) describe() (document, error) {
	api := s.api.OpenAPI()
	schema := api.Components.Schemas.Schema(reflect.TypeFor[Problem](), true, "Problem")
	api.Components.Responses = map[string]*huma.Response{}
	statuses := map[int]bool{}
	for i := range s.table {
		for _, status := range s.table[i].problems() {
			statuses[status] = true
		}
	}
	for status := range statuses {
		api.Components.Responses["Problem"+strconv.Itoa(status)] = problemResponse(status, schema)
	}
	// huma registers its own error model with every operation; nothing here answers with it.
	delete(api.Components.Schemas.Map(), "ErrorModel")
	delete(api.Components.Schemas.Map(), "ErrorDetail")
	if err := describeEvents(api.Components.Schemas.Map()); err != nil {
		return document{}, err
	}
	raw, err := json.Marshal(api)
	if err != nil {
		return document{}, fault.Wrap("httpapi.describe", err)
	}
	return document{json: raw, yaml: sync.OnceValues(func() ([]byte, error) {
		var text bytes.Buffer
		err := yaml.Convert(&text, bytes.NewReader(raw))
		return text.Bytes(), fault.Wrap("httpapi.describe", err)
	})}, nil
}

func problemResponse(status int, schema *huma.Schema) *huma.Response {
	code := codeInvalid
	for _, c := range fault.Classes() {
		if statusOf(c) == status {
			code = c.String()
		}
	}
	switch status {
	case http.StatusMethodNotAllowed:
		code = codeMethod
	case http.StatusRequestTimeout:
		code = codeSlowBody
	case http.StatusUnsupportedMediaType:
		code = codeMediaType
	case http.StatusUpgradeRequired:
		code = "upgrade_required"
	case http.StatusGone:
		code = codeCallbackLate
	}
	example := newProblem(status, code, explain(code).Help, "req-06f4k3z9c8tqv5m2")
	r := &huma.Response{
		Description: explain(code).Title,
		Content:     map[string]*huma.MediaType{problemType: {Schema: schema, Example: example}},
		Headers:     map[string]*huma.Param{"X-Request-Id": {Schema: &huma.Schema{Type: "string"}}},
	}
	switch status {
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		r.Headers["Retry-After"] = &huma.Param{Description: "Seconds", Schema: &huma.Schema{Type: "integer"}}
	case http.StatusUnauthorized:
		r.Headers["WWW-Authenticate"] = &huma.Param{Schema: &huma.Schema{Type: "string"}}
	}
	return r
}

// fieldsOf lists the names that a body of the operation may have at its outermost level.
func (s *Server) fieldsOf(o *operation) []string {
	api := s.api.OpenAPI()
	item := api.Paths[o.Path]
	if item == nil {
		return nil
	}
	d := map[string]*huma.Operation{http.MethodPost: item.Post, http.MethodPut: item.Put, http.MethodPatch: item.Patch,
		http.MethodDelete: item.Delete}[o.Method]
	if d == nil || d.RequestBody == nil || d.RequestBody.Content["application/json"] == nil {
		return nil
	}
	schema := d.RequestBody.Content["application/json"].Schema
	if schema.Ref != "" {
		schema = api.Components.Schemas.SchemaFromRef(schema.Ref)
	}
	names := make([]string, 0, len(schema.Properties))
	for name := range schema.Properties {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
