package mail

import (
	"testing"

	"claude-memory-backend/internal/seal"
)

// Post is a mail server, for tests that need real databases: these know this package.
type Post struct{ post *post }

// NewPost starts one; hang makes it take mails and say nothing.
func NewPost(t *testing.T, hang bool) Post {
	t.Helper()
	p := newPost(t, ways{})
	p.hang = hang
	return Post{p}
}

// Transport leads there.
func (p Post) Transport(t *testing.T) *SMTP {
	t.Helper()
	s, err := NewSMTP(seal.Secret("smtp://"+p.post.address), p.post.roots)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Held waits until a mail hangs.
func (p Post) Held() { <-p.post.held }

// Works makes it a good server.
func (p Post) Works() {
	p.post.mu.Lock()
	defer p.post.mu.Unlock()
	p.post.hang = false
}

// Next waits for a mail and returns its recipient and its Message-ID.
func (p Post) Next() (to, id string) {
	got := <-p.post.came
	return got.to, got.header.Get("Message-Id")
}

// Left is how many came that nobody asked for.
func (p Post) Left() int { return len(p.post.came) }
