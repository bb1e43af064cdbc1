package sqlstore

import (
	"errors"
	"slices"
	"testing"
	"time"

	"claude-memory-backend/internal/access"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/mail"
	"claude-memory-backend/internal/member"
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

// An invitation and its mail are there together, or neither is.
func TestInvitationsKeepTheirMail(t *testing.T) {
	onMaster(t, func(t *testing.T, s *MasterStore) {
		ada := join(t, s, "ada@example.org", "")
		join(t, s, "bob@example.org", "")
		p := placeOfProject(ada)
		invite := func(email, name string, fails error) error {
			_, err := s.AddMember(t.Context(), p, member.Member{Email: email, Role: access.Viewer}, func(m *member.Member) (event.Change, error) {
				ch, err := comesIn(m)
				if m.State == member.Invited {
					m.Notice = &mail.Entry{Name: name, Sealed: []byte(name), CreatedAt: noon(0)}
				}
				return ch, errors.Join(err, fails)
			})
			return err
		}
		waiting := func(after time.Duration) (names []string) {
			for _, e := range settle[[]mail.Entry](t)(s.ClaimMails(t.Context(), noon(after), noon(after+time.Minute), 9)) {
				names = append(names, e.Name)
			}
			return names
		}
		if err := invite("eve@example.org", "refused", errors.New("no")); err == nil || waiting(0) != nil {
			t.Errorf("%v", err)
		}
		if err := invite("eve@example.org", "first", nil); err != nil {
			t.Fatal(err)
		}
		if got := waiting(time.Hour); !slices.Equal(got, []string{"first"}) {
			t.Errorf("%q", got)
		}
		refused(t, invite("EVE@example.org", "again", nil), member.CodeExists)
		if err := invite("bob@example.org", "a member", nil); err != nil {
			t.Fatal(err)
		}
		if got := waiting(2 * time.Hour); !slices.Equal(got, []string{"first"}) {
			t.Errorf("%q", got)
		}
	})
}
