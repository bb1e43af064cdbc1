package relocate

import (
	"context"
	"testing"
	"time"

	"claude-memory-backend/internal/blob"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/seal"
)

// TestTidyFindsRemains: what a process left that died while it took, or removed, a snapshot does not outlive others.
func TestTidyFindsRemains(t *testing.T) {
	keys, err := seal.NewKeyring("an entirely unguessable phrase, 0123456789")
	if err != nil {
		t.Fatal(err)
	}
	dir, now := t.TempDir(), time.Now()
	s := NewSnapshots(func(ctx context.Context) (blob.Store, error) { return blob.Open(ctx, dir) }, keys)
	s.now = func() time.Time { return now }
	r, err := s.repository(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	// begun is a snapshot as far as one is that was not completed.
	begun := func(age time.Duration, key bool) string {
		t.Helper()
		owner, was := string(ident.New[ident.TenantID]()), now
		now = now.Add(-age)
		defer func() { now = was }()
		if key {
			if _, err := r.writeKey(t.Context(), owner, nil); err != nil {
				t.Fatal(err)
			}
		}
		if err := blob.PutBytes(t.Context(), r.store, chunkFile(owner, "0123"), []byte("sealed")); err != nil {
			t.Fatal(err)
		}
		return owner
	}
	broken, fresh, keyless := begun(SnapshotLife+time.Hour, true), begun(time.Hour, true), begun(0, false)
	gone := string(ident.New[ident.TenantID]()) // the last file of one that was removed
	if err := blob.PutBytes(t.Context(), r.store, stepsDir+"/"+gone, []byte("sealed")); err != nil {
		t.Fatal(err)
	}
	all := func(context.Context, ident.TenantID, time.Time) (bool, error) { return true, nil }
	if err := s.Tidy(t.Context(), all); err != nil {
		t.Fatal(err)
	}
	left := map[string]int{}
	for _, owner := range []string{broken, fresh, keyless, gone} {
		for _, dir := range []string{keysDir, chunksDir, stepsDir} {
			for info, err := range r.store.List(t.Context(), dir+"/"+owner) {
				if err != nil {
					t.Fatal(err, info)
				}
				left[owner]++
			}
			if _, err := r.store.Stat(t.Context(), dir+"/"+owner); err == nil {
				left[owner]++
			}
		}
	}
	if len(left) != 1 || left[fresh] != 2 {
		t.Errorf("broken off %d, being taken %d, without a key %d, all but removed %d",
			left[broken], left[fresh], left[keyless], left[gone])
	}
}
