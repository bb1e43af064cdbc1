package sqlstore

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"io"

	"claude-memory-backend/internal/fault"
)

// longestCursor bounds what is decoded; the longest of ours holds a title.
const longestCursor = 16 << 10

// formatCursor makes the opaque text of a place in a listing: JSON in base64url. It is not signed: every value in it
// goes through the same checks and parameters as any other input, and names nothing outside this database.
func formatCursor(place any) string {
	raw, err := json.Marshal(place)
	if err != nil {
		panic("a cursor that cannot be marshalled") // our own struct of text and numbers
	}
	return base64.RawURLEncoding.EncodeToString(raw)
}

// parseCursor reads what formatCursor made into place, and nothing else.
func parseCursor(text string, place any) error {
	if len(text) > longestCursor {
		return badCursor()
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil {
		return badCursor()
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	if d.Decode(place) != nil {
		return badCursor()
	}
	if _, err := d.Token(); err != io.EOF {
		return badCursor()
	}
	return nil
}

func badCursor() error {
	return fault.BadInput("sqlstore.Cursor", "query.cursor", "this is not a cursor of this listing")
}
