package mail

import (
	"context"
	"os"
	"path/filepath"
	"strings"

	"claude-memory-backend/internal/fault"
)

// Folder puts mails into files that mail programs open (.eml), instead of sending them: for development.
type Folder struct{ path string }

// NewFolder takes the folder; it is made with the first mail.
func NewFolder(path string) *Folder { return &Folder{path} }

// Send implements Transport. A mail that is there already is written over.
func (f *Folder) Send(_ context.Context, l Letter) error {
	const op = "mail.Folder.Send"
	raw, err := l.bytes()
	if err != nil {
		return fault.New(fault.Internal, op, CodeRejected, "the mail cannot be written down")
	}
	name, _, _ := strings.Cut(l.id, "@")
	name = filepath.Join(f.path, l.at.UTC().Format("20060102-150405")+"-"+name+".eml")
	if err := os.MkdirAll(f.path, 0o700); err != nil {
		return fault.Wrap(op, err)
	}
	if err := os.WriteFile(name+".part", raw, 0o600); err != nil { // whoever watches the folder sees whole mails only
		return fault.Wrap(op, err)
	}
	return fault.Wrap(op, os.Rename(name+".part", name))
}
