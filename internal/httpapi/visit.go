package httpapi

import (
	"context"
	"errors"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/workspace"
)

// at does something in the actor's own tenant and, where that knows nothing of the subject (a project or a conversation),
// in the tenant of whoever shares it with the actor. So own data costs nothing more, and whether somebody else has
// something is asked of the master alone.
func at[T any](x *exchange, subject string, do func(Workspace) (T, error)) (T, error) {
	ws, err := x.workspace()
	var out T
	if err == nil {
		out, err = do(ws)
	}
	if err == nil || !mayBeElsewhere(err) {
		return out, err
	}
	if ws.Release != nil {
		ws.Release() // nobody holds two tenants open
	}
	guest, verr := x.visit(subject)
	switch {
	case fault.Is(verr, fault.NotFound):
		return out, err
	case verr != nil:
		return out, verr
	}
	return do(guest)
}

// listIn is at for a list of what is in a project: an empty one may be that of a project that is elsewhere.
func listIn[T any](x *exchange, project string, list func(Workspace) ([]T, string, error)) ([]T, string, error) {
	type page struct {
		items []T
		next  string
	}
	if project == "" {
		ws, err := x.workspace()
		if err != nil {
			return nil, "", err
		}
		return list(ws)
	}
	own := true
	p, err := at(x, project, func(ws Workspace) (page, error) {
		items, next, err := list(ws)
		if err == nil && len(items) == 0 && own {
			err = errNothing
		}
		own = false
		return page{items, next}, err
	})
	if errors.Is(err, errNothing) {
		err = nil
	}
	return p.items, p.next, err
}

// errNothing stands for an empty list of the own tenant.
var errNothing = fault.Missing("httpapi.listIn")

// mayBeElsewhere reports whether an answer of the own tenant leaves the possibility that what was asked for is in somebody
// else's: it is not here, or here cannot be asked.
func mayBeElsewhere(err error) bool {
	switch fault.ClassOf(err) {
	case fault.NotFound, fault.Unavailable:
		return true
	case fault.Invalid:
		// A project that is not here may be there, and so may what a cursor was made for.
		f, ok := errors.AsType[*fault.Error](err)
		return ok && len(f.Fields) == 1 && (f.Fields[0].Location == "body.project_id" || f.Fields[0].Location == "query.cursor")
	}
	return false
}

// visit opens what is shared with the actor until the exchange is done. Whoever waits there for a model stops waiting when
// it is not shared any more.
func (x *exchange) visit(subject string) (Workspace, error) {
	if x.s.deps.Visit == nil {
		return Workspace{}, fault.Missing("httpapi.visit")
	}
	ws, err := x.s.deps.Visit(x.ctx, x.actor, subject)
	if err != nil {
		return Workspace{}, err
	}
	x.opened(ws)
	if x.op.waits && ws.While != nil {
		ctx, cancel := ws.While(x.ctx)
		x.atEnd = append(x.atEnd, cancel)
		x.ctx = ctx
	}
	return ws, nil
}

// lostAccess reports whether a context ended because the actor may not see any more what is being answered.
func lostAccess(ctx context.Context) bool {
	return errors.Is(context.Cause(ctx), workspace.ErrNoAccess)
}

// idAt parses the identifier in a path. A malformed one looks like one that never was.
func idAt[T interface {
	~string
	Prefix() string
}](text string) (T, error) {
	id, err := ident.Parse[T](text)
	if err != nil {
		return id, fault.Missing("httpapi.idAt")
	}
	return id, nil
}
