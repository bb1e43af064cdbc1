package httpapi

import (
	"fmt"
	"html"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/klauspost/compress/gzhttp"
	"github.com/swaggest/swgui/v5emb"

	"claude-memory-backend/internal/fault"
)

const (
	basePath   = "/api/v1"
	docsPath   = "/api/docs"
	errorsPath = docsPath + "/errors"
	specPath   = "/api/openapi.json"
	specPathY  = "/api/openapi.yaml"
)

// docsPolicy lets the page use its own scripts and styles and call the server it came from, and nothing else. The
// page's library writes style attributes, hence unsafe-inline for styles.
const docsPolicy = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; " +
	"font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

const docsPage = `<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Claude Memory Backend: API</title>
<link rel="stylesheet" href="` + docsPath + `/swagger-ui.css">
<link rel="icon" type="image/png" href="` + docsPath + `/favicon-32x32.png">
</head>
<body>
<div id="page"></div>
<noscript>The page needs scripts. The document itself: <a href="` + specPath + `">openapi.json</a>.</noscript>
<script src="` + docsPath + `/swagger-ui-bundle.js"></script>
<script src="` + docsPath + `/start.js"></script>
</body>
</html>
`

const docsScript = `window.onload = function () {
  SwaggerUIBundle({
    url: "` + specPath + `",
    dom_id: "#page",
    deepLinking: true,
    persistAuthorization: false,
    validatorUrl: null,
    presets: [SwaggerUIBundle.presets.apis]
  });
};
`

// page answers with text of a kind that is no JSON.
func pageAnswer(kind, policy, text string) *written {
	return &written{Body: func(hc huma.Context) {
		x := hc.(*exchange)
		h := x.w.Header()
		h.Set("Content-Type", kind)
		if policy != "" {
			h.Set("Content-Security-Policy", policy)
		}
		_, _ = x.w.Write([]byte(text)) // the client may be gone
	}}
}

func (s *Server) docs(*exchange, *probe) (*written, error) {
	if !s.cfg.DocsPage {
		return nil, fault.Missing("httpapi.docs")
	}
	return pageAnswer("text/html; charset=utf-8", docsPolicy, docsPage), nil
}

type docsFile struct {
	Call
	File string `path:"file"`
}

// docsAsset serves the page's parts from the binary: the page works with no outside resource.
func (s *Server) docsAsset(_ *exchange, in *docsFile) (*written, error) {
	if !s.cfg.DocsPage {
		return nil, fault.Missing("httpapi.docsAsset")
	}
	switch in.File {
	case "start.js":
		return pageAnswer("text/javascript; charset=utf-8", "", docsScript), nil
	case "swagger-ui.css", "swagger-ui-bundle.js", "favicon-32x32.png", "favicon-16x16.png":
		assets := v5emb.New("", specPath, docsPath)
		return &written{Body: func(hc huma.Context) {
			x := hc.(*exchange)
			h := x.w.Header()
			h.Set(gzhttp.HeaderNoCompression, "1") // they are stored compressed
			h.Set("Cache-Control", "public, max-age=3600")
			assets.ServeHTTP(x.w, x.r)
		}}, nil
	}
	return nil, fault.Missing("httpapi.docsAsset")
}

// errorsPage explains every code; the type of a problem links here.
func (s *Server) errorsPage(*exchange, *probe) (*written, error) {
	var b strings.Builder
	b.WriteString("<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Problem codes</title></head><body>\n" +
		"<h1>Problem codes</h1>\n<dl>\n")
	for _, e := range Codes() {
		fmt.Fprintf(&b, "<dt id=\"%s\"><code>%s</code>: %s</dt>\n<dd>%s</dd>\n", e.Code, e.Code,
			html.EscapeString(e.Title), html.EscapeString(e.Help))
	}
	b.WriteString("</dl>\n</body></html>\n")
	return pageAnswer("text/html; charset=utf-8", "", b.String()), nil
}

func (s *Server) specJSON(*exchange, *probe) (*written, error) {
	return s.specAnswer("application/openapi+json", s.spec.json), nil
}

func (s *Server) specYAML(*exchange, *probe) (*written, error) {
	text, err := s.spec.yaml()
	if err != nil {
		return nil, err
	}
	return s.specAnswer("application/openapi+yaml", text), nil
}

func (s *Server) specAnswer(kind string, text []byte) *written {
	return &written{Body: func(hc huma.Context) {
		x := hc.(*exchange)
		x.w.Header().Set("Content-Type", kind)
		x.w.Header().Set("Cache-Control", "public, max-age=60")
		x.w.WriteHeader(http.StatusOK)
		_, _ = x.w.Write(text) // the client may be gone
	}}
}
