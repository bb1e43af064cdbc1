package workspace

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/sqlstore"
)

// News is what the master database knows of a tenant's databases and members and the tenant's own log does not have yet. Telling is
// done by any node, and by several at once without harm.
type News interface {
	News(ctx context.Context, now time.Time, limit int) ([]sqlstore.News, error)
	Told(ctx context.Context, ids []ident.EventID) error
	TellLater(ctx context.Context, id ident.TenantID, due time.Time) error
}

// followNews tells tenants until ctx ends.
func (p *Pool) followNews(ctx context.Context) {
	if p.News == nil {
		return
	}
	every(ctx, dueEvery, func() { p.tellNews(ctx) })
}

// tellNews writes into tenants' own logs what the master's says of them.
func (p *Pool) tellNews(ctx context.Context) {
	list, err := p.News.News(ctx, p.Now(), dueBatch)
	if err != nil {
		p.Log.Warn("news not read", "code", fault.CodeOf(err))
		return
	}
	byTenant := map[ident.TenantID][]sqlstore.News{}
	for _, n := range list {
		byTenant[n.Tenant] = append(byTenant[n.Tenant], n)
	}
	var group errgroup.Group
	group.SetLimit(looksAtOnce)
	for id, news := range byTenant {
		group.Go(func() error {
			p.tellTenant(ctx, id, news)
			return nil
		})
	}
	_ = group.Wait() // tellTenant says itself what goes wrong
}

// tellTenant tells one tenant, in order, as far as its database takes it. The rest is told later.
func (p *Pool) tellTenant(ctx context.Context, id ident.TenantID, news []sqlstore.News) {
	look, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	var told []ident.EventID
	ws, err := p.Acquire(look, ident.System(""), id)
	if err == nil {
		defer ws.Release()
		for _, n := range news {
			if err = ws.entry.store.Tell(look, n.Event, ws.Tenant.Account); err != nil {
				break
			}
			if n.Event.Type == "member.added" {
				if err = ws.entry.routeAll(look, ident.ProjectID(n.Event.Subject)); err != nil {
					break
				}
			}
			told = append(told, n.Event.ID)
		}
	}
	if terr := p.News.Told(ctx, told); terr != nil {
		p.Log.Warn("news not taken away", "code", fault.CodeOf(terr), "tenant", id) // told again, and there once
	}
	if err == nil || ctx.Err() != nil {
		return
	}
	if fault.Is(err, fault.Internal) {
		p.Log.Warn("tenant not told of what the master did", "code", fault.CodeOf(err), "tenant", id)
	}
	if err := p.News.TellLater(ctx, id, p.Now().Add(mendPause)); err != nil {
		p.Log.Warn("news not put off", "code", fault.CodeOf(err), "tenant", id)
	}
}
