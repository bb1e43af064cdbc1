package httpapi

import (
	"net/http/httptest"
	"testing"
)

func TestSmoke(t *testing.T) {
	s, err := NewServer(Config{OnceSecret: make([]byte, 32), RateLimit: true, DocsPage: true}, Deps{})
	if err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{"/api/v1/health", "/api/v1/projects", "/api/v1/nope", "/api/openapi.json", "/api/docs", "/api/v1/health/metrics"} {
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, httptest.NewRequest("GET", target, nil))
		b := w.Body.String()
		if len(b) > 3000 && target != "/api/openapi.json" {
			b = b[:300]
		}
		t.Log(target, w.Code, w.Header(), b)
	}
}
