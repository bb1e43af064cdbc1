package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/seal"
	"claude-memory-backend/internal/sqlstore"
)

const (
	lastingFact    = "installation_key"
	lastingPurpose = "installation key"
)

// lastingKeys are the installation's own keys, from a secret that is drawn once and kept in the master database,
// sealed under the master key. What is derived from them stays the same when the master key is rotated: the password
// of the login that works on tenants, digests that records are found by, the signature of receipts.
func lastingKeys(ctx context.Context, store *sqlstore.MasterStore, keys *seal.Keyring) (*seal.Keyring, error) {
	for {
		sealed, err := store.FindFact(ctx, lastingFact)
		if fault.Is(err, fault.NotFound) {
			fresh := seal.NewKey()
			sealed = keys.Seal(lastingPurpose, fresh[:], []byte(lastingFact))
			// Of several servers that start at once, one draws it.
			if _, err = store.PutFact(ctx, lastingFact, sealed, time.Now()); err == nil {
				continue
			}
		}
		if err != nil {
			return nil, err
		}
		secret, err := keys.Open(lastingPurpose, sealed, []byte(lastingFact))
		if fault.CodeOf(err) == "seal_unknown_key" {
			return nil, errors.New("MASTER_KEY is not the one that this data was made with: put the right one back, " +
				"or the one before it into MASTER_KEY_PREVIOUS (a key that nobody set is in " + devSecrets + " beside the data)")
		}
		if err != nil {
			return nil, fmt.Errorf("the installation's key in the master database is damaged: %w", err)
		}
		fresh, changed, err := keys.Rewrap(lastingPurpose, sealed, []byte(lastingFact))
		if err == nil && changed {
			// Another server may have done it; whichever value is there now holds the same secret.
			_, err = store.ReplaceFact(ctx, lastingFact, sealed, fresh, time.Now())
		}
		if err != nil {
			return nil, err
		}
		return seal.NewKeyring(seal.Secret(secret))
	}
}
