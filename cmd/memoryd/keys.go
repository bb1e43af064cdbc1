package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"claude-memory-backend/internal/relocate"
)

type keysCmd struct {
	Rewrap keysRewrapCmd `cmd:"" help:"Seal under MASTER_KEY whatever is sealed under MASTER_KEY_PREVIOUS; no data is touched."`
}

type keysRewrapCmd struct {
	JSON bool `name:"json" help:"The report as one JSON object."`
}

// Run does it in the server that works on the folder, which must have the same keys, or here.
func (c keysRewrapCmd) Run(ctx context.Context, p *program) error {
	return withTenantsAs(ctx, p, keeper|anew, func(w *whole) error {
		j, err := w.svc.StartRewrap(ctx, asOperator())
		if err != nil {
			return err
		}
		j, err = w.follow(ctx, p, j)
		var r relocate.RewrapReport
		if len(j.Report) > 0 {
			if err := json.Unmarshal(j.Report, &r); err != nil {
				return err
			}
		}
		if err != nil && len(r.Unopened) == 0 {
			return err
		}
		if c.JSON {
			if err := json.NewEncoder(p.stdout).Encode(r); err != nil {
				return err
			}
		} else {
			fmt.Fprintf(p.stdout, "%d databases with secrets; sealed anew, with the keys of their snapshots: %d\n", r.Databases, r.Resealed)
			for _, id := range r.Unopened {
				fmt.Fprintf(p.stdout, "%s: no key that is set opens its secrets\n", id)
			}
		}
		if len(r.Unopened) > 0 {
			return codedError{errors.New("keep MASTER_KEY_PREVIOUS, and look for the key that the databases above were made under"), exitSome}
		}
		if !c.JSON {
			fmt.Fprint(p.stdout, `everything stored is sealed under MASTER_KEY. Before MASTER_KEY_PREVIOUS goes:
  every server was restarted with the new key
  repeats of requests (Idempotency-Key) made under the old one need it for 24 hours
  mails that wait to be sent need it for three days at most
  run memoryd backup into each of your repositories: their keys are sealed anew by that
`)
		}
		return nil
	})
}
