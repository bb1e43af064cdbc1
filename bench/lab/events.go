package lab

import (
	"bufio"
	"bytes"
	"io"
)

// Events reads Server-Sent Events until emit says stop (false) or the stream ends. Half an event at the end of a
// broken stream counts as none.
func Events(r io.Reader, emit func(Event) bool) error {
	lines := bufio.NewReaderSize(r, 64<<10)
	var e Event
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			if err == io.EOF {
				return nil
			}
			return err
		}
		line = bytes.TrimRight(line, "\r\n")
		name, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch {
		case len(line) == 0:
			if e.Type != "" || e.Data != nil {
				if !emit(e) {
					return nil
				}
			}
			e = Event{}
		case string(name) == "id":
			e.ID = string(value)
		case string(name) == "event":
			e.Type = string(value)
		case string(name) == "data":
			e.Data = append(e.Data, value...)
		}
	}
}
