package audit

import (
	"context"
	"encoding/base64"
	"encoding/json"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

// Service is what doors call to read an owner's trail. One exists per open tenant.
type Service struct {
	own    Store // the tenant's trail
	master Store // the installation's, of which the owner sees what is by or about the account
	owner  ident.AccountID
}

// New builds the service of the tenant that owner owns.
func New(own, master Store, owner ident.AccountID) *Service {
	return &Service{own: own, master: master, owner: owner}
}

// place is the cursor of a listing that merges two trails. An empty part means from the start, "-" that it is over.
type place struct {
	Own    string `json:"o"`
	Master string `json:"m"`
}

const over = "-"

// List returns up to limit entries, newest first, and the next cursor: what was done in the tenant, and what the
// installation noted by or about the account (sessions, refused logins, password changes).
func (s *Service) List(ctx context.Context, actor ident.Actor, f Filter, cursor string, limit int) ([]Entry, string, error) {
	const op = "audit.List"
	if !actor.System && actor.Account != s.owner {
		return nil, "", fault.Missing(op)
	}
	var at place
	if cursor != "" {
		raw, err := base64.RawURLEncoding.DecodeString(cursor)
		if err != nil || json.Unmarshal(raw, &at) != nil {
			return nil, "", fault.BadInput(op, "query.cursor", "is not a cursor of this listing")
		}
	}
	ownFilter, masterFilter := f, f
	ownFilter.Account, masterFilter.Account = "", s.owner
	own, err := page(ctx, s.own, ownFilter, at.Own, limit)
	if err != nil {
		return nil, "", fault.Wrap(op, err)
	}
	master, err := page(ctx, s.master, masterFilter, at.Master, limit)
	if err != nil {
		return nil, "", fault.Wrap(op, err)
	}
	var out []Entry
	i, j := 0, 0
	for len(out) < limit && (i < len(own) || j < len(master)) {
		if j == len(master) || (i < len(own) && !own[i].At.Before(master[j].At)) {
			at.Own = own[i].Place
			out = append(out, own[i])
			i++
			continue
		}
		at.Master = master[j].Place
		out = append(out, master[j])
		j++
	}
	// A trail that gave less than was asked for, all of it used, is over.
	if i == len(own) && len(own) < limit {
		at.Own = over
	}
	if j == len(master) && len(master) < limit {
		at.Master = over
	}
	if at.Own == over && at.Master == over {
		return out, "", nil
	}
	raw, err := json.Marshal(at)
	if err != nil {
		return nil, "", fault.Wrap(op, err)
	}
	return out, base64.RawURLEncoding.EncodeToString(raw), nil
}

func page(ctx context.Context, s Store, f Filter, cursor string, limit int) ([]Entry, error) {
	if cursor == over {
		return nil, nil
	}
	entries, _, err := s.Entries(ctx, f, cursor, limit)
	return entries, err
}
