package sqlstore

import (
	"sync"
	"testing"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/job"
)

// TestInsertOnlyJob: of jobs that exclude each other and come at the same time one is stored, and the others hear which.
func TestInsertOnlyJob(t *testing.T) {
	for _, e := range []struct {
		name string
		open func(*testing.T) *DB
	}{{"sqlite", onSQLite}, {"postgres", onPostgres}} {
		t.Run(e.name, func(t *testing.T) {
			db := e.open(t)
			if _, err := Migrate(t.Context(), db, Master); err != nil {
				t.Fatal(err)
			}
			store, kinds := NewMasterStore(db, nil), []string{"there", "back"}
			const askers = 8
			ids, others := make([]ident.JobID, askers), make([]job.Job, askers)
			var asking sync.WaitGroup
			for i := range askers {
				asking.Go(func() {
					now := ident.Time(1_700_000_000_000_000)
					j := job.Job{ID: ident.New[ident.JobID](), Kind: kinds[i%2], State: job.Queued, CreatedAt: now}
					ch := event.NewChange(ident.System(""), now)
					ch.Add(j.Kind+"_started", string(j.ID), map[string]any{})
					ids[i] = j.ID
					var err error
					if others[i], err = store.InsertOnlyJob(t.Context(), j, kinds, ch); err != nil {
						t.Error(err)
					}
				})
			}
			asking.Wait()
			list, _, err := store.ListJobs(t.Context(), job.Filter{}, "", askers)
			if err != nil || len(list) != 1 {
				t.Fatalf("%d jobs, %v", len(list), err)
			}
			for i, other := range others {
				if other.ID != list[0].ID && (other.ID != "" || ids[i] != list[0].ID) {
					t.Errorf("asker %d heard of %q, and %q is there", i, other.ID, list[0].ID)
				}
			}
		})
	}
}
