package relocate

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"claude-memory-backend/internal/blob"
	"claude-memory-backend/internal/fault"
)

// Who works in a repository says so in a file first, and looks for others then: of two that begin at the same time, at
// least one sees the other. Runs that add do not disturb one another. One that removes what nobody refers to must be
// alone with them: a run that is under way relies on chunks that only its manifest, the last thing it writes, will
// refer to. Ages are told by the store's clock alone.
//
//	backup: announce ─► a prune is there? wait until it is gone ─► work, renewing ─► still believed? manifest ─► withdraw
//	prune:  announce ─► a backup or a prune is there? withdraw ─► forget those not renewed for long ─► work ─► withdraw
const (
	kindBackup = "backup"
	kindPrune  = "prune"
)

// marker is the file by which one that works here is known.
type marker struct {
	r    *Repository
	name string
	stop context.CancelCauseFunc
	done sync.WaitGroup
}

// announce says that work of a kind begins. The context it returns ends when the marker could not be renewed in time.
func (r *Repository) announce(ctx context.Context, kind string) (context.Context, *marker, error) {
	m := &marker{r: r, name: runningDir + "/" + kind + "-" + randomName()}
	if err := blob.PutBytes(ctx, r.store, m.name, []byte(r.now().UTC().Format(time.RFC3339))); err != nil {
		return nil, nil, err
	}
	ctx, m.stop = context.WithCancelCause(ctx)
	m.done.Go(func() { m.renew(ctx) })
	return ctx, m, nil
}

// renew keeps the marker young until the work ends.
func (m *marker) renew(ctx context.Context) {
	tick := time.NewTicker(m.r.lease / 10)
	defer tick.Stop()
	renewed := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := m.there(ctx)
		if err == nil {
			err = blob.PutBytes(ctx, m.r.store, m.name, []byte(m.r.now().UTC().Format(time.RFC3339)))
		}
		switch {
		case err == nil:
			renewed = time.Now()
		case fault.CodeOf(err) == "backup_interrupted" || time.Since(renewed) > m.r.lease/2:
			m.stop(interrupted(err))
			return
		}
	}
}

// there fails with code "backup_interrupted" when somebody has taken the marker away, believing this one dead.
func (m *marker) there(ctx context.Context) error {
	_, err := m.r.store.Stat(ctx, m.name)
	if fault.CodeOf(err) == "file_missing" {
		return interrupted(err)
	}
	return err
}

func interrupted(cause error) error {
	return fault.New(fault.Unavailable, "relocate.Repository", "backup_interrupted",
		"the storage was out of reach for too long: run it again").With(cause)
}

// withdraw says that the work is over.
func (m *marker) withdraw(ctx context.Context) error {
	m.stop(nil)
	m.done.Wait()
	return m.r.store.Delete(context.WithoutCancel(ctx), m.name)
}

// others lists the markers beside one's own: those that are believed, and those that are too old for it.
func (m *marker) others(ctx context.Context) (alive, dead []string, err error) {
	own, err := m.r.store.Stat(ctx, m.name)
	if err != nil {
		return nil, nil, err
	}
	for info, err := range m.r.store.List(ctx, runningDir) {
		switch {
		case err != nil:
			return nil, nil, err
		case info.Name == m.name:
		case own.Modified.Sub(info.Modified) > m.r.lease:
			dead = append(dead, info.Name)
		default:
			alive = append(alive, info.Name)
		}
	}
	return alive, dead, nil
}

// beginBackup announces a run that adds, and waits while one that removes is at work.
func (r *Repository) beginBackup(ctx context.Context) (context.Context, *marker, error) {
	ctx, m, err := r.announce(ctx, kindBackup)
	if err != nil {
		return nil, nil, err
	}
	pause := time.NewTicker(r.lease / 300)
	defer pause.Stop()
	for {
		alive, _, err := m.others(ctx)
		if err == nil && !anyOf(alive, kindPrune) {
			return ctx, m, nil
		}
		if err == nil {
			select {
			case <-pause.C:
				continue
			case <-ctx.Done():
				err = fault.New(fault.Canceled, "relocate.Backup", "", "the operation ended").With(context.Cause(ctx))
			}
		}
		return nil, nil, errors.Join(err, m.withdraw(ctx))
	}
}

// beginPrune announces a run that removes. Code "backup_busy": another run is at work.
func (r *Repository) beginPrune(ctx context.Context) (context.Context, *marker, error) {
	ctx, m, err := r.announce(ctx, kindPrune)
	if err != nil {
		return nil, nil, err
	}
	alive, dead, err := m.others(ctx)
	if err == nil && len(alive) > 0 {
		err = fault.New(fault.Conflict, "relocate.Prune", "backup_busy",
			"another run is at work in these backups: nothing was removed, try again when it is over")
	}
	for _, name := range dead {
		if err == nil {
			err = r.store.Delete(ctx, name)
		}
	}
	if err != nil {
		return nil, nil, errors.Join(err, m.withdraw(ctx))
	}
	return ctx, m, nil
}

func anyOf(markers []string, kind string) bool {
	for _, name := range markers {
		if strings.HasPrefix(name, runningDir+"/"+kind+"-") {
			return true
		}
	}
	return false
}
