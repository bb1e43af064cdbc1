package mail_test

import (
	"context"
	"fmt"
	netmail "net/mail"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"claude-memory-backend/internal/mail"
	"claude-memory-backend/internal/seal"
	"claude-memory-backend/internal/sqlstore"
)

// master opens a master database, as each process does.
func master(t *testing.T, path string) (*sqlstore.DB, *sqlstore.MasterStore) {
	t.Helper()
	db, err := sqlstore.OpenSQLite(t.Context(), sqlstore.SQLiteOptions{Path: path, Create: true, Synchronous: "NORMAL"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	if _, err := sqlstore.Migrate(t.Context(), db, sqlstore.Master); err != nil {
		t.Fatal(err)
	}
	return db, sqlstore.NewMasterStore(db, nil)
}

// process is an outbox that runs, until stop.
func process(t *testing.T, store mail.Store, out mail.Transport, now func() time.Time) (o *mail.Outbox, stop func()) {
	t.Helper()
	keys, err := seal.NewKeyring("an entirely unguessable phrase, 0123456789")
	if err != nil {
		t.Fatal(err)
	}
	o = mail.NewOutbox(mail.Config{Store: store, Sealer: keys, Key: seal.Key{1}, Transport: out, Now: now, Grace: 20 * time.Millisecond,
		From: &netmail.Address{Address: "memory@example.org"}})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = o.Run(ctx) }()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return o, stop
}

// What a process died over comes by the next one, as the same mail, once the claim is over; not before, since the process may
// live.
func TestMailsOutliveTheirProcess(t *testing.T) {
	path := filepath.Join(t.TempDir(), "master.db")
	post := mail.NewPost(t, true)
	var ahead atomic.Int64
	now := func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }

	db, store := master(t, path)
	first, stop := process(t, store, post.Transport(t), now)
	if err := first.Enqueue(t.Context(), "notice", mail.Message{To: "ada@example.com", Subject: "hush", Text: "a secret"}); err != nil {
		t.Fatal(err)
	}
	post.Held()
	// From here on it says nothing more to its database, like one that was killed.
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	stop()

	_, store = master(t, path)
	if list, err := store.ClaimMails(t.Context(), now(), now().Add(time.Minute), 9); err != nil || len(list) > 0 {
		t.Fatalf("it can be claimed twice at once: %v %v", list, err)
	}
	post.Works()
	ahead.Store(int64(4 * time.Minute))
	second, stop := process(t, store, post.Transport(t), now)
	to, id := post.Next()
	if to != "ada@example.com" || id == "" {
		t.Errorf("%q %q", to, id)
	}
	// Asked for again, it is known.
	if err := second.Enqueue(t.Context(), "notice", mail.Message{To: "ada@example.com", Subject: "hush", Text: "a secret"}); err != nil {
		t.Fatal(err)
	}
	if err := second.Enqueue(t.Context(), "another", mail.Message{To: "bob@example.com", Subject: "x", Text: "y"}); err != nil {
		t.Fatal(err)
	}
	if to, other := post.Next(); to != "bob@example.com" || other == id {
		t.Errorf("%q %q", to, other)
	}
	stop()
	if post.Left() != 0 {
		t.Error("one came twice")
	}
}

// Two processes share the work: each mail comes once.
func TestMailsComeOnceFromTwo(t *testing.T) {
	post := mail.NewPost(t, false)
	_, store := master(t, filepath.Join(t.TempDir(), "master.db"))
	one, stopOne := process(t, store, post.Transport(t), time.Now)
	two, stopTwo := process(t, store, post.Transport(t), time.Now)
	const many = 24
	want := map[string]bool{}
	for i := range many {
		to := fmt.Sprintf("somebody-%d@example.com", i)
		want[to] = true
		for _, o := range []*mail.Outbox{one, two} {
			if err := o.Enqueue(t.Context(), to, mail.Message{To: to, Subject: "x", Text: "y"}); err != nil {
				t.Fatal(err)
			}
		}
	}
	var ids []string
	for range many {
		to, id := post.Next()
		if !want[to] || slices.Contains(ids, id) {
			t.Errorf("%s came again", to)
		}
		delete(want, to)
		ids = append(ids, id)
	}
	stopOne()
	stopTwo()
	if post.Left() != 0 {
		t.Error("there are more than were written")
	}
}
