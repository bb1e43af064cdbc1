package sqlstore

import (
	"testing"

	"claude-memory-backend/internal/mail"
	"claude-memory-backend/internal/storetest"
)

func TestMails(t *testing.T) {
	for name, open := range map[string]func(*testing.T) *DB{"sqlite": onSQLite, "postgres": onPostgres} {
		t.Run(name, func(t *testing.T) {
			db := open(t)
			if _, err := Migrate(t.Context(), db, Master); err != nil {
				t.Fatal(err)
			}
			storetest.Mails(t, func(t *testing.T) mail.Store {
				t.Helper()
				// Emptied, since making one takes longer than what is tested.
				if err := db.Write(t.Context(), func(tx *Tx) error {
					return tx.Commit(func(b *Batch) { b.Exec(`DELETE FROM mails`) })
				}); err != nil {
					t.Fatal(err)
				}
				return NewMasterStore(db, nil)
			})
		})
	}
}
