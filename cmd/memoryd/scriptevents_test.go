package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"claude-memory-backend/internal/event/catalogue/cataloguetest"
)

// What is told, against what the server says that it tells:
//
//	events                       reads the log of whoever speaks, which must be as the catalogue says that the server shows;
//	                             so does every story at its end
//	told TYPE                    waits until the log of whoever speaks has an event of the type
//	events all [but TYPE…]       the same, and by now the story has seen every type of the catalogue but these
//
// eventsTold are the types that a story has seen.
type eventsTold map[string]bool

type toldEvent struct {
	Seq     int64           `json:"seq"`
	Type    string          `json:"type"`
	Subject string          `json:"subject"`
	Data    json.RawMessage `json:"data"`
}

type toldEntry struct {
	Type    string          `json:"type"`
	Subject string          `json:"subject"`
	Schema  json.RawMessage `json:"schema"`
}

func cmdEvents(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 0 && (args[0] != "all" || len(args) > 1 && args[1] != "but") {
		ts.Fatalf("usage: events [all [but TYPE…]]")
	}
	b := storyOf(ts).browser
	ts.Check(b.checkEvents())
	if len(args) == 0 {
		return
	}
	catalogue, err := b.catalogue()
	ts.Check(err)
	but := slices.Concat(args, []string{"", ""})[2:]
	for _, e := range catalogue {
		switch {
		case !b.told[e.Type] && !slices.Contains(but, e.Type):
			ts.Fatalf("nothing here has sent %s", e.Type)
		case b.told[e.Type] && slices.Contains(but, e.Type):
			ts.Fatalf("%s was sent after all", e.Type)
		}
	}
	for _, kind := range but {
		if kind != "" && !slices.ContainsFunc(catalogue, func(e toldEntry) bool { return e.Type == kind }) {
			ts.Fatalf("%s is not in the catalogue", kind)
		}
	}
}

func cmdTold(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: told TYPE")
	}
	b := storyOf(ts).browser
	for deadline := time.Now().Add(patience); !b.told[args[0]]; time.Sleep(20 * time.Millisecond) {
		ts.Check(b.checkEvents())
		if time.Now().After(deadline) {
			ts.Fatalf("no %s was sent", args[0])
		}
	}
}

// catalogue is what the server says.
func (b *browser) catalogue() ([]toldEntry, error) {
	var page struct{ Data []toldEntry }
	_, err := b.read("/api/v1/events/catalogue", &page)
	return page.Data, err
}

// checkEvents holds the log of whoever speaks against the catalogue. A log that cannot be read now is none.
func (b *browser) checkEvents() error {
	catalogue, err := b.catalogue()
	if err != nil {
		return err
	}
	for after := int64(0); ; {
		var page struct{ Data []toldEvent }
		status, err := b.read(fmt.Sprintf("/api/v1/events?limit=200&after=%d", after), &page)
		if status == http.StatusUnauthorized || status == http.StatusForbidden || status == http.StatusServiceUnavailable {
			return nil
		}
		if status == http.StatusNotFound {
			// An account that was erased, whose session the server believes in for a second: the account itself says so at once.
			if status, _ := b.read("/api/v1/auth/profile", &struct{}{}); status == http.StatusUnauthorized {
				return nil
			}
		}
		if err != nil {
			return err
		}
		for _, e := range page.Data {
			after = e.Seq
			i := slices.IndexFunc(catalogue, func(c toldEntry) bool { return c.Type == e.Type })
			if i < 0 {
				return fmt.Errorf("%s was sent, and is not in the catalogue", e.Type)
			}
			if !strings.HasPrefix(e.Subject, catalogue[i].Subject) {
				return fmt.Errorf("the subject of %s was %s", e.Type, e.Subject)
			}
			if err := cataloguetest.Fits(catalogue[i].Schema, e.Data); err != nil {
				return fmt.Errorf("%w\n%s", err, e.Data)
			}
			b.told[e.Type] = true
		}
		if len(page.Data) == 0 {
			return nil
		}
	}
}

// read asks for something beside the story: its last answer stays.
func (b *browser) read(path string, into any) (int, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.base+path, nil)
	if err != nil {
		return 0, err
	}
	if b.token != "" {
		req.Header.Set("Authorization", "Bearer "+b.token)
	}
	res, err := b.client.Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(res.Body)
	if err != nil {
		return res.StatusCode, err
	}
	if res.StatusCode != http.StatusOK {
		return res.StatusCode, fmt.Errorf("%s: %d", path, res.StatusCode)
	}
	return res.StatusCode, json.Unmarshal(raw, into)
}
