package relocate

import (
	"context"
	"errors"

	"claude-memory-backend/internal/fault"
)

// Pruned is what Prune removed.
type Pruned struct {
	Snapshots int
	Files     Size // chunks and keys
}

// Prune removes all but the newest keep snapshots (0: none), and then every chunk and key that no snapshot refers to:
// what is left of those removed, of runs that did not come to their end, and of erased tenants. It does nothing, code
// "backup_busy", while another run is at work here, and nothing when a snapshot cannot be read, since nobody knows then
// what it refers to.
func (r *Repository) Prune(ctx context.Context, keep int) (_ *Pruned, err error) {
	const op = "relocate.Prune"
	ctx, marker, err := r.beginPrune(ctx)
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	defer func() { err = fault.Wrap(op, errors.Join(err, marker.withdraw(ctx))) }()
	list, err := r.Snapshots(ctx)
	if err != nil {
		return nil, err
	}
	doomed := 0
	if keep > 0 {
		doomed = max(0, len(list)-keep)
	}
	wanted := make(map[string]bool)
	for _, info := range list[doomed:] {
		m, err := r.Manifest(ctx, info.ID)
		if err != nil {
			return nil, err
		}
		for _, d := range m.Databases {
			wanted[keyFile(d.Owner, d.Key)] = true
			for _, c := range d.Chunks {
				wanted[chunkFile(d.Owner, c.Name)] = true
			}
		}
	}
	erasures, err := r.Erasures(ctx)
	if err != nil {
		return nil, err
	}
	p := &Pruned{}
	for _, info := range list[:doomed] { // before what they refer to
		if err := r.store.Delete(ctx, snapshotsDir+"/"+info.ID); err != nil {
			return nil, err
		}
		p.Snapshots++
	}
	for _, e := range erasures {
		if err := r.Erase(ctx, e); err != nil {
			return nil, err
		}
	}
	own := keysDir + "/" + ownerSnapshots + "/"
	for _, folder := range []string{chunksDir, keysDir} {
		gone, err := r.deleteAll(ctx, folder, func(name string) bool { return wanted[name] || len(name) > len(own) && name[:len(own)] == own })
		if err != nil {
			return nil, err
		}
		p.Files.Files += gone.Files
		p.Files.Bytes += gone.Bytes
	}
	return p, nil
}
