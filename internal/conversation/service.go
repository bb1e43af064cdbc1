package conversation

import (
	"context"
	"encoding/json"
	"reflect"
	"slices"
	"time"

	"golang.org/x/time/rate"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

// Service is what doors call. One exists per open tenant.
type Service struct {
	store  Store
	engine *Engine
	sealer event.Sealer
	owner  ident.AccountID
	tenant TenantPart
	spool  Spool // nil: none
	// searching holds one place: searches of one tenant take turns, however many are asked for at once. They are the
	// dearest that one may ask for, and all tenants share the machine.
	searching chan struct{}
	budget    *rate.Limiter // of time that searches may take, in microseconds; nil: no bound
}

// TenantPart is what a service needs of the place where its tenant is open.
type TenantPart interface {
	// Retain keeps the tenant's database open until the returned function is called: a running turn outlives the
	// request that started it.
	Retain() (release func())
	// Hint notes, before the tenant commits it, that something is due at the time.
	Hint(ctx context.Context, due time.Time) error
	// Spool is where turns leave what the database does not take; nil: nowhere.
	Spool() Spool
	// Near reports whether the database works with this machine's processors, which all tenants share.
	Near() bool
}

// New builds the service of the tenant that owner owns.
func New(store Store, engine *Engine, sealer event.Sealer, owner ident.AccountID, tenant TenantPart) *Service {
	s := &Service{store: store, engine: engine, sealer: sealer, owner: owner, tenant: tenant,
		searching: make(chan struct{}, 1)}
	if tenant != nil {
		s.spool = tenant.Spool()
	}
	if engine != nil && engine.SearchShare > 0 {
		s.budget = rate.NewLimiter(rate.Limit(engine.SearchShare*1e6), int(searchBurst.Microseconds()))
	}
	return s
}

// Create starts a conversation. A repeat of in.Once answers with the first result.
func (s *Service) Create(ctx context.Context, actor ident.Actor, in CreateInput) (Conversation, error) {
	const op = "conversation.Create"
	if err := s.allow(op, actor); err != nil {
		return Conversation{}, err
	}
	d := withDefaults(in.Details)
	if err := s.check(op, d); err != nil {
		return Conversation{}, err
	}
	now := s.moment()
	c := Conversation{ID: ident.New[ident.ConversationID](), Details: d, TitleByHand: d.Title != "",
		Creator: who(actor), Version: 1, CreatedAt: now, UpdatedAt: now}
	if err := in.Once.Keep(s.sealer, c); err != nil {
		return Conversation{}, err
	}
	ch := event.NewChange(actor, now)
	ch.Once = in.Once
	ch.Add("conversation.created", string(c.ID), map[string]any{"project_id": nullable(string(d.ProjectID))})
	err := s.store.InsertConversation(ctx, c, ch)
	if event.Repeated(err) {
		err = in.Once.Replay(ctx, s.store, s.sealer, &c)
	} else if in.Once != nil && fault.Is(err, fault.Forbidden) { // there was room for the first of two
		var was Conversation
		if in.Once.Replay(ctx, s.store, s.sealer, &was) == nil {
			return was, nil
		}
	}
	if err != nil {
		return Conversation{}, fault.Wrap(op, err)
	}
	return c, nil
}

// Find returns one conversation.
func (s *Service) Find(ctx context.Context, actor ident.Actor, id ident.ConversationID) (Conversation, error) {
	const op = "conversation.Find"
	if err := s.allow(op, actor); err != nil {
		return Conversation{}, err
	}
	c, err := s.store.FindConversation(ctx, id)
	return c, fault.Wrap(op, err)
}

// List returns a page of conversations and the next cursor.
func (s *Service) List(ctx context.Context, actor ident.Actor, q Query) ([]Conversation, string, error) {
	const op = "conversation.List"
	if err := s.allow(op, actor); err != nil {
		return nil, "", err
	}
	cs, next, err := s.store.ListConversations(ctx, q)
	return cs, next, fault.Wrap(op, err)
}

// Edit lets change alter the details. With ifVersion it is Stale unless that is the current version. An edit that
// alters nothing is no change.
func (s *Service) Edit(ctx context.Context, actor ident.Actor, id ident.ConversationID, ifVersion *int64,
	change func(*Details) error,
) (Conversation, error) {
	const op = "conversation.Edit"
	if err := s.allow(op, actor); err != nil {
		return Conversation{}, err
	}
	c, err := s.store.UpdateConversation(ctx, id, func(c Conversation) (Conversation, event.Change, error) {
		if ifVersion != nil && *ifVersion != c.Version {
			return c, event.Change{}, stale(op)
		}
		d := c.Details
		d.Tags = append([]string(nil), d.Tags...)
		if err := change(&d); err != nil {
			return c, event.Change{}, err
		}
		d = withDefaults(d)
		if err := s.check(op, d); err != nil {
			return c, event.Change{}, err
		}
		if reflect.DeepEqual(d, withDefaults(c.Details)) {
			return c, event.Change{}, nil
		}
		ch := event.NewChange(actor, s.moment())
		kind := "conversation.updated"
		switch {
		case d.Status != c.Status && d.Status == Archived:
			kind = "conversation.archived"
		case d.ProjectID != c.ProjectID:
			kind = "conversation.moved"
		}
		if d.Title != c.Title {
			c.TitleByHand = d.Title != ""
		}
		facts := map[string]any{"version": c.Version + 1, "status": d.Status, "project_id": nullable(string(d.ProjectID))}
		if d.ProjectID != c.ProjectID {
			facts["from_project_id"] = nullable(string(c.ProjectID)) // whoever follows that project hears that it left
		}
		c.Details, c.Version, c.UpdatedAt = d, c.Version+1, ch.At
		ch.Add(kind, string(id), facts)
		return c, ch, nil
	})
	return c, fault.Wrap(op, err)
}

// Delete removes a conversation with everything in it. Turns that run in it are stopped.
func (s *Service) Delete(ctx context.Context, actor ident.Actor, id ident.ConversationID, ifVersion *int64) error {
	const op = "conversation.Delete"
	if err := s.allow(op, actor); err != nil {
		return err
	}
	err := s.store.DeleteConversation(ctx, id, func(c Conversation) (event.Change, error) {
		if ifVersion != nil && *ifVersion != c.Version {
			return event.Change{}, stale(op)
		}
		ch := event.NewChange(actor, s.moment())
		ch.Add("conversation.deleted", string(id), map[string]any{"messages": c.MessageCount,
			"project_id": nullable(string(c.ProjectID))})
		return ch, nil
	})
	if err == nil {
		s.engine.dropConversation(id)
	}
	return fault.Wrap(op, err)
}

// Messages returns a page of messages and the next cursor. A message that claims to be streaming really is: one whose
// owner is gone is marked interrupted first.
func (s *Service) Messages(ctx context.Context, actor ident.Actor, id ident.ConversationID, q MessageQuery) ([]Message, string, error) {
	const op = "conversation.Messages"
	if err := s.allow(op, actor); err != nil {
		return nil, "", err
	}
	for range 2 {
		ms, next, err := s.store.ListMessages(ctx, id, q)
		if err != nil {
			return nil, "", fault.Wrap(op, err)
		}
		settled := false
		for i, m := range ms {
			if m.State == Streaming && s.engine.dead(m.Turn, m.Node, m.Lease) {
				switch err := s.settle(ctx, m.Turn); {
				case Unwritable(err):
					ms[i].State = Interrupted
					continue
				case err != nil:
					return nil, "", fault.Wrap(op, err)
				}
				settled = true
			}
		}
		if !settled {
			return ms, next, nil
		}
	}
	ms, next, err := s.store.ListMessages(ctx, id, q)
	return ms, next, fault.Wrap(op, err)
}

// Turn returns a turn with its messages as they stand.
func (s *Service) Turn(ctx context.Context, actor ident.Actor, id ident.ConversationID, turn ident.TurnID) (Exchange, error) {
	const op = "conversation.Turn"
	if err := s.allow(op, actor); err != nil {
		return Exchange{}, err
	}
	x, err := s.exchange(ctx, id, turn)
	return x, fault.Wrap(op, err)
}

// Running returns the turns of a conversation that run at the moment, oldest first.
func (s *Service) Running(ctx context.Context, actor ident.Actor, id ident.ConversationID) ([]Turn, error) {
	const op = "conversation.Running"
	if err := s.allow(op, actor); err != nil {
		return nil, err
	}
	const most = 1000 // an open tenant runs a hundred at once
	all, err := s.store.RunningTurns(ctx, most)
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	return slices.DeleteFunc(all, func(t Turn) bool { return t.Conversation != id }), nil
}

// exchange reads a turn; one whose owner is gone is marked interrupted first.
func (s *Service) exchange(ctx context.Context, id ident.ConversationID, turn ident.TurnID) (Exchange, error) {
	t, user, assistant, err := s.store.FindTurn(ctx, id, turn)
	if err != nil {
		return Exchange{}, err
	}
	if !t.State.Final() && s.engine.dead(t.ID, t.Node, t.Lease) {
		err := s.settle(ctx, turn)
		if Unwritable(err) {
			t.State, assistant.State = Interrupted, Interrupted
			return Exchange{User: user, Assistant: &assistant, Turn: &t}, nil
		}
		if err != nil {
			return Exchange{}, err
		}
		if t, user, assistant, err = s.store.FindTurn(ctx, id, turn); err != nil {
			return Exchange{}, err
		}
	}
	return Exchange{User: user, Assistant: &assistant, Turn: &t}, nil
}

// Unwritable reports whether something was not stored because the data may only be read at the moment, or its disk takes
// nothing. What a reader is to see is then shown without being stored.
func Unwritable(err error) bool {
	switch fault.CodeOf(err) {
	case "tenant_read_only", "tenant_quarantined", "storage_full", "storage_failed":
		return true
	}
	return false
}

// settle marks a turn interrupted whose owner is gone, unless the spool knows more of it. It changes nothing when the turn
// has ended or its owner lives.
func (s *Service) settle(ctx context.Context, turn ident.TurnID) error {
	if s.holds(turn) {
		if err := s.restore(ctx, turn); err != nil {
			return err
		}
	}
	orphaned := false
	done, err := s.store.EndTurn(ctx, turn, func(t Turn, m Message) (Ending, event.Change, error) {
		orphaned = false
		if t.State.Final() || !s.engine.dead(t.ID, t.Node, t.Lease) {
			return Ending{Turn: t, Message: m}, event.Change{}, nil
		}
		e, ch := s.ownerGone(t, m)
		orphaned = true
		return e, ch, nil
	})
	if fault.Is(err, fault.NotFound) {
		return nil // deleted meanwhile
	}
	if err == nil && orphaned {
		s.engine.told(done, true)
	}
	return err
}

// Sweep stores what the spool has, then marks the turns interrupted whose owners are gone. It returns when to look again:
// the earliest lease among those that still run, soon while the spool has something, or zero.
func (s *Service) Sweep(ctx context.Context) (next time.Time, err error) {
	const op = "conversation.Sweep"
	const batch = 500
	left, err := s.restoreAll(ctx)
	if err != nil {
		return time.Time{}, fault.Wrap(op, err)
	}
	if left {
		next = s.moment().Add(restoreAgain)
	}
	turns, err := s.store.RunningTurns(ctx, batch)
	if err != nil {
		return time.Time{}, fault.Wrap(op, err)
	}
	for _, t := range turns {
		if s.engine.dead(t.ID, t.Node, t.Lease) {
			if err := s.settle(ctx, t.ID); err != nil {
				return time.Time{}, fault.Wrap(op, err)
			}
			continue
		}
		if next.IsZero() || t.Lease.Before(next) {
			next = t.Lease
		}
	}
	if len(turns) == batch && next.IsZero() {
		next = s.moment()
	}
	return next, nil
}

// Search finds messages and titles by their words.
func (s *Service) Search(ctx context.Context, actor ident.Actor, in SearchInput) ([]Hit, string, error) {
	const op = "conversation.Search"
	if err := s.allow(op, actor); err != nil {
		return nil, "", err
	}
	select {
	case s.searching <- struct{}{}:
		defer func() { <-s.searching }()
	case <-ctx.Done():
		return nil, "", fault.New(fault.Canceled, op, "", "the request ended").With(ctx.Err())
	}
	charge, err := s.afford(ctx)
	if err != nil {
		return nil, "", fault.New(fault.Canceled, op, "", "the request ended").With(err)
	}
	defer charge()
	hits, next, err := search(ctx, s.store, in)
	return hits, next, fault.Wrap(op, err)
}

// searchBurst is how long the searches of a tenant may take before they are held to their share of a processor. Who
// searches now and then notices nothing of it; who searches without a pause gets slower, not everybody else.
const searchBurst = 500 * time.Millisecond

// afford waits until earlier searches are paid for; charge is called after the next one. The caller has the turn.
func (s *Service) afford(ctx context.Context) (charge func(), err error) {
	if s.budget == nil || !s.tenant.Near() {
		return func() {}, nil
	}
	if err := s.budget.Wait(ctx); err != nil {
		return nil, err
	}
	began := time.Now()
	return func() {
		s.budget.ReserveN(time.Now(), int(min(time.Since(began), searchBurst).Microseconds()))
	}, nil
}

// ending makes the last state of a turn and the events that tell of it. Text, blocks, usage and the like are the
// caller's to fill in before.
func ending(actor ident.Actor, t Turn, m Message, state State, code, detail string, at time.Time,
	tokens func(text string, blocks json.RawMessage) int64,
) (Ending, event.Change) {
	t.State, t.ErrorCode, t.ErrorDetail, t.FinishedAt = state, code, detail, &at
	m.State, m.ErrorCode, m.ErrorDetail, m.UpdatedAt = state, code, detail, at
	if m.LatencyMS == 0 {
		m.LatencyMS = at.Sub(t.StartedAt).Milliseconds()
	}
	if m.Tokens == 0 {
		m.Tokens = tokens(m.Content, m.Blocks)
		m.TokensUpTo += m.Tokens
	}
	ch := event.NewChange(actor, at)
	facts := map[string]any{"conversation_id": t.Conversation, "project_id": nullable(string(t.Project)), "turn_id": t.ID,
		"message_id": m.ID, "state": state}
	ch.Add("turn."+string(state), string(t.ID), facts)
	ch.Add("message.completed", string(m.ID), facts)
	return Ending{Turn: t, Message: m}, ch
}

// allow lets the owner in. To anybody else the tenant's content does not exist.
func (s *Service) allow(op string, actor ident.Actor) error {
	if actor.System || actor.Account == s.owner {
		return nil
	}
	return fault.Missing(op)
}

func (s *Service) moment() time.Time { return s.engine.moment() }

func (s *Service) check(op string, d Details) error {
	var c fault.Checks
	c.Text("body.title", d.Title, 0, 300)
	c.Text("body.description", d.Description, 0, 10_000)
	c.OneOf("body.status", string(d.Status), string(Active), string(Pinned), string(Archived))
	if d.ImportanceLevel < 1 || d.ImportanceLevel > 10 {
		c.Add("body.importance_level", "must be from 1 to 10")
	}
	c.Tags("body.tags", d.Tags)
	c.Text("body.system", d.System, 0, 200_000)
	s.engine.checkModel(&c, d.Provider, d.Model)
	c.Object("body.settings", d.Settings)
	if err := c.Err(op); err != nil {
		return err
	}
	return s.engine.checkSettings(d.Settings)
}

func withDefaults(d Details) Details {
	if d.Status == "" {
		d.Status = Active
	}
	if d.ImportanceLevel == 0 {
		d.ImportanceLevel = 3
	}
	if d.Tags == nil {
		d.Tags = []string{}
	}
	if len(d.Settings) == 0 {
		d.Settings = json.RawMessage("{}")
	}
	return d
}

func stale(op string) error {
	return fault.New(fault.Stale, op, "", "somebody changed it since you read it: read it again and repeat your edit")
}

func who(a ident.Actor) event.Who { return event.Who{ID: a.Account, Name: a.Name} }

// nullable makes JSON null of an empty string.
func nullable(s string) any {
	if s == "" {
		return nil
	}
	return s
}
