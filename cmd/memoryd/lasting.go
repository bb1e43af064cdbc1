package main

import (
	"context"
	"encoding/hex"
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

// usedFact begins the names of facts that hold the ids of master keys under which something may have been sealed.
const usedFact = "master_key_used_"

// lastingKeys are the installation's own keys, from a secret that is drawn once and kept in the master database,
// sealed under the master key. What is derived from them stays the same when the master key is rotated: the password
// of the login that works on tenants, digests that records are found by, the signature of receipts. sealed is that secret
// as it is kept. Only a rewrap seals it anew, as the last of all (decision 0087).
func lastingKeys(ctx context.Context, store *sqlstore.MasterStore, keys *seal.Keyring) (lasting *seal.Keyring, sealed []byte, err error) {
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
			return nil, nil, err
		}
		secret, err := keys.Open(lastingPurpose, sealed, []byte(lastingFact))
		if fault.CodeOf(err) == "seal_unknown_key" {
			return nil, nil, errors.New("MASTER_KEY is not the one that this data was made with: put the right one back, " +
				"or the one before it into MASTER_KEY_PREVIOUS (a key that nobody set is in " + devSecrets + " beside the data)")
		}
		if err != nil {
			return nil, nil, fmt.Errorf("the installation's key in the master database is damaged: %w", err)
		}
		lasting, err = seal.NewKeyring(seal.Secret(secret))
		return lasting, sealed, err
	}
}

// useKeys notes the master keys of this installation. Whoever is going to seal under MASTER_KEY calls it first.
func useKeys(ctx context.Context, store *sqlstore.MasterStore, keys *seal.Keyring) error {
	for _, id := range keys.IDs() {
		if _, err := store.PutFact(ctx, usedFact+hex.EncodeToString(id), id, time.Now()); err != nil {
			return err
		}
	}
	return nil
}

// lookAtKeys is an error when tenants' secrets are sealed under a master key of this installation that is not set here.
func (in *install) lookAtKeys(ctx context.Context) error {
	ids := in.keys.IDs()
	n, err := in.store.SealedElsewhere(ctx, usedFact, ids[0], ids[len(ids)-1])
	if err == nil && n > 0 {
		err = fmt.Errorf("%d databases are sealed under another MASTER_KEY of this installation: set both keys, one as MASTER_KEY "+
			"and the other as MASTER_KEY_PREVIOUS, until memoryd keys rewrap, or the server, says that everything is sealed under MASTER_KEY", n)
	}
	return err
}

// ready reports whether the server can be used: the master database answers, and neither the installation nor a tenant
// needs a key that is not set. The installation's own key is one row, and the last that a rewrap seals anew: it tells of
// one that found nothing else to seal.
func (in *install) ready(ctx context.Context) error {
	sealed, err := in.store.FindFact(ctx, lastingFact)
	switch {
	case fault.Is(err, fault.NotFound): // it answers; the next start draws another one
	case err != nil:
		return err
	default:
		if _, err := in.keys.Following(sealed); err != nil {
			return errors.New("the installation's key was sealed anew under another MASTER_KEY: start this server again with that one")
		}
	}
	return in.lookAtKeys(ctx)
}

// rewrapLasting seals the installation's own key under MASTER_KEY.
func (in *install) rewrapLasting(ctx context.Context) error {
	for {
		sealed, err := in.store.FindFact(ctx, lastingFact)
		if err != nil {
			return err
		}
		fresh, changed, err := in.keys.Rewrap(lastingPurpose, sealed, []byte(lastingFact))
		if err != nil || !changed {
			return err
		}
		// Another server may have done it meanwhile.
		if done, err := in.store.ReplaceFact(ctx, lastingFact, sealed, fresh, time.Now()); err != nil || done {
			return err
		}
	}
}
