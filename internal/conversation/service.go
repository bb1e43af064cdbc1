package conversation

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"time"

	"golang.org/x/time/rate"

	"claude-memory-backend/internal/access"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
)

// Service is what doors call. One exists per open tenant, and one more for each guest.
type Service struct {
	store   Store
	engine  *Engine
	sealer  event.Sealer
	owner   ident.AccountID
	pass    access.Pass
	base    *Service // the tenant owner's: turns run there, whoever asked for them and whatever becomes of their membership
	tenant  TenantPart
	sharing Sharing
	spool   Spool // nil: none
	// searching holds one place: searches of one tenant take turns, however many are asked for at once. They are the
	// dearest that one may ask for, and all tenants share the machine.
	searching chan struct{}
	budget    *rate.Limiter // of time that searches may take, in microseconds; nil: no bound
	// guests are who search here as members of a project: nil for them themselves. Each has a share of their own, so that none
	// uses up the owner's, and all of them together one place beside the owner's.
	guests *guests
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
	// Callback makes the address at which the answer of a turn may be delivered until the time; whoever uses it later hears,
	// for a while, that it is late. Empty: answers cannot be delivered.
	Callback(t Turn, until time.Time) string
}

// Sharing knows which projects others are members of.
type Sharing interface {
	// Route notes where a conversation is, before it is in the project at that version of it, if others are members of the
	// project: shared reports that.
	Route(ctx context.Context, id ident.ConversationID, in ident.ProjectID, version int64) (shared bool, err error)
	// Arrived is called when it is there; routed is what Route said.
	Arrived(ctx context.Context, id ident.ConversationID, in ident.ProjectID, version int64, routed bool)
	// Left is called after a conversation has left the project, by getting the version or by being deleted (0).
	Left(ctx context.Context, id ident.ConversationID, from ident.ProjectID, version int64)
}

// New builds the service of the tenant that owner owns.
func New(store Store, engine *Engine, sealer event.Sealer, owner ident.AccountID, tenant TenantPart) *Service {
	s := &Service{store: store, engine: engine, sealer: sealer, owner: owner, pass: access.Owning(owner), tenant: tenant,
		searching: make(chan struct{}, 1)}
	s.guests = newGuests(s.newBudget)
	s.base = s
	if tenant != nil {
		s.spool = tenant.Spool()
	}
	s.budget = s.newBudget()
	return s
}

// newBudget is what somebody's searches may take; nil: no bound.
func (s *Service) newBudget() *rate.Limiter {
	if s.engine == nil || s.engine.SearchShare <= 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(s.engine.SearchShare*1e6), int(searchBurst.Microseconds()))
}

// WithSharing tells x of changes, and returns s. Without it nobody else is a member of anything.
func (s *Service) WithSharing(x Sharing) *Service {
	s.sharing = x
	return s
}

// For is the same service for a guest, whose store is that of the one project.
func (s *Service) For(pass access.Pass, store Store) *Service {
	c := *s
	c.pass, c.store = pass, store
	return &c
}

// Create starts a conversation. A repeat of in.Once answers with the first result.
func (s *Service) Create(ctx context.Context, actor ident.Actor, in CreateInput) (Conversation, error) {
	const op = "conversation.Create"
	if err := s.pass.Allow(op, actor, access.CreateConversation); err != nil {
		return Conversation{}, err
	}
	if s.pass.Guest() && in.ProjectID != s.pass.Project {
		return Conversation{}, noSuchProject(op)
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
	shared, err := s.route(ctx, c.ID, d.ProjectID, c.Version)
	if err != nil {
		return Conversation{}, fault.Wrap(op, err)
	}
	err = s.store.InsertConversation(ctx, c, ch)
	if err == nil {
		s.arrived(ctx, c, shared)
	}
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
	if err := s.pass.Allow(op, actor, access.ReadConversation); err != nil {
		return Conversation{}, err
	}
	c, err := s.store.FindConversation(ctx, id)
	return c, fault.Wrap(op, err)
}

// List returns a page of conversations and the next cursor.
func (s *Service) List(ctx context.Context, actor ident.Actor, q Query) ([]Conversation, string, error) {
	const op = "conversation.List"
	if err := s.pass.Allow(op, actor, access.ReadConversation); err != nil {
		return nil, "", err
	}
	if s.pass.Guest() && q.Project != s.pass.Project {
		return nil, "", nil
	}
	var err error
	if q.Cursor, err = s.opened(op, q.Cursor); err != nil {
		return nil, "", err
	}
	cs, next, err := s.store.ListConversations(ctx, q)
	return cs, s.closed(next), fault.Wrap(op, err)
}

// Edit lets change alter the details. With ifVersion it is Stale unless that is the current version. An edit that
// alters nothing is no change.
func (s *Service) Edit(ctx context.Context, actor ident.Actor, id ident.ConversationID, ifVersion *int64,
	change func(*Details) error,
) (Conversation, error) {
	const op = "conversation.Edit"
	if err := s.pass.Allow(op, actor, access.EditConversation); err != nil {
		return Conversation{}, err
	}
	var from ident.ProjectID // where it was
	var routed *ident.ProjectID
	shared := false
	edit := func(c Conversation) (Conversation, event.Change, error) {
		if ifVersion != nil && *ifVersion != c.Version {
			return c, event.Change{}, stale(op)
		}
		from = c.ProjectID
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
		if d.ProjectID != from {
			if err := s.pass.Allow(op, actor, access.MoveConversation); err != nil {
				return c, event.Change{}, err
			}
			if routed == nil || *routed != d.ProjectID {
				return c, event.Change{}, &unrouted{to: d.ProjectID, version: c.Version + 1}
			}
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
	}
	c, err := s.store.UpdateConversation(ctx, id, edit)
	for tries := 0; tries < 3; tries++ {
		move, ok := errors.AsType[*unrouted](err)
		if !ok {
			break
		}
		// Where it is going is said before it is there, and not while its row is locked.
		if shared, err = s.route(ctx, id, move.to, move.version); err != nil {
			break
		}
		routed = &move.to
		c, err = s.store.UpdateConversation(ctx, id, edit)
	}
	if err == nil && c.ProjectID != from {
		s.left(ctx, id, from, c.Version)
		s.arrived(ctx, c, shared)
	}
	return c, fault.Wrap(op, err)
}

// unrouted stops an edit that moves a conversation until it is said where it goes.
type unrouted struct {
	to      ident.ProjectID
	version int64
}

func (*unrouted) Error() string { return "the conversation moves to another project" }

// route says where a conversation is about to be; shared reports whether anybody wants to know.
func (s *Service) route(ctx context.Context, id ident.ConversationID, in ident.ProjectID, version int64) (shared bool, err error) {
	if s.sharing == nil || in == "" {
		return false, nil
	}
	return s.sharing.Route(ctx, id, in, version)
}

// arrived is called when a conversation is in its project. Whoever shared that meanwhile may have made the list of what is
// in it too early to see this one, and this one was too early to be told; so it asks once more.
func (s *Service) arrived(ctx context.Context, c Conversation, shared bool) {
	if s.sharing != nil && c.ProjectID != "" {
		s.sharing.Arrived(ctx, c.ID, c.ProjectID, c.Version, shared)
	}
}

// left is called when a conversation is not in a project any more.
func (s *Service) left(ctx context.Context, id ident.ConversationID, from ident.ProjectID, version int64) {
	if s.sharing != nil && from != "" {
		s.sharing.Left(ctx, id, from, version)
	}
}

func noSuchProject(op string) error {
	return fault.BadInput(op, "body.project_id", "there is no such project")
}

// The place of a listing, which a guest carries, would tell how much else there is in the owner's tenant.
const cursorPurpose = "guest's cursor"

// closed seals a cursor for a guest.
func (s *Service) closed(cursor string) string {
	if cursor == "" || !s.pass.Guest() {
		return cursor
	}
	return base64.RawURLEncoding.EncodeToString(s.sealer.Seal(cursorPurpose, []byte(cursor), s.cursorOf()))
}

// opened is a cursor that closed sealed.
func (s *Service) opened(op, cursor string) (string, error) {
	if cursor == "" || !s.pass.Guest() {
		return cursor, nil
	}
	raw, err := base64.RawURLEncoding.DecodeString(cursor)
	if err == nil {
		raw, err = s.sealer.Open(cursorPurpose, raw, s.cursorOf())
	}
	if err != nil {
		return "", fault.BadInput(op, "query.cursor", "is not a cursor of this listing")
	}
	return string(raw), nil
}

func (s *Service) cursorOf() []byte {
	return []byte(string(s.pass.Account) + " " + string(s.pass.Project))
}

// Delete removes a conversation with everything in it. Turns that run in it are stopped.
func (s *Service) Delete(ctx context.Context, actor ident.Actor, id ident.ConversationID, ifVersion *int64) error {
	const op = "conversation.Delete"
	if err := s.pass.Allow(op, actor, access.DeleteConversation); err != nil {
		return err
	}
	var from ident.ProjectID
	err := s.store.DeleteConversation(ctx, id, func(c Conversation) (event.Change, error) {
		from = c.ProjectID
		if ifVersion != nil && *ifVersion != c.Version {
			return event.Change{}, stale(op)
		}
		ch := event.NewChange(actor, s.moment())
		ch.Add("conversation.deleted", string(id), map[string]any{"messages": c.MessageCount, "project_id": nullable(string(from))})
		return ch, nil
	})
	if err == nil {
		s.engine.dropConversation(id)
		s.left(ctx, id, from, 0)
	}
	return fault.Wrap(op, err)
}

// Messages returns a page of messages and the next cursor. A message that claims to be streaming really is: one whose
// owner is gone is marked interrupted first.
func (s *Service) Messages(ctx context.Context, actor ident.Actor, id ident.ConversationID, q MessageQuery) ([]Message, string, error) {
	const op = "conversation.Messages"
	if err := s.pass.Allow(op, actor, access.ReadConversation); err != nil {
		return nil, "", err
	}
	var err error
	if q.Cursor, err = s.opened(op, q.Cursor); err != nil {
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
					if m.Node == nobody {
						ms[i].State, ms[i].ErrorCode, ms[i].ErrorDetail = Failed, CodeCallbackTimeout, overdue
					} else {
						ms[i].State = Interrupted
					}
					continue
				case err != nil:
					return nil, "", fault.Wrap(op, err)
				}
				settled = true
			}
		}
		if !settled {
			return ms, s.closed(next), nil
		}
	}
	ms, next, err := s.store.ListMessages(ctx, id, q)
	return ms, s.closed(next), fault.Wrap(op, err)
}

// Turn returns a turn with its messages as they stand.
func (s *Service) Turn(ctx context.Context, actor ident.Actor, id ident.ConversationID, turn ident.TurnID) (Exchange, error) {
	const op = "conversation.Turn"
	if err := s.pass.Allow(op, actor, access.ReadConversation); err != nil {
		return Exchange{}, err
	}
	x, err := s.exchange(ctx, id, turn)
	return x, fault.Wrap(op, err)
}

// Running returns the turns of a conversation that run at the moment, oldest first.
func (s *Service) Running(ctx context.Context, actor ident.Actor, id ident.ConversationID) ([]Turn, error) {
	const op = "conversation.Running"
	if err := s.pass.Allow(op, actor, access.ReadConversation); err != nil {
		return nil, err
	}
	if s.pass.Guest() { // which running turns are the project's, the conversation's own row alone tells
		if _, err := s.Find(ctx, actor, id); err != nil {
			return nil, fault.Wrap(op, err)
		}
	}
	const most = 1000 // an open tenant runs a hundred at once
	all, err := s.store.RunningTurns(ctx, most)
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	all = slices.DeleteFunc(all, func(t Turn) bool { return t.Conversation != id })
	slices.SortFunc(all, func(a, b Turn) int { return cmp.Or(a.StartedAt.Compare(b.StartedAt), cmp.Compare(a.ID, b.ID)) })
	return all, nil
}

// exchange reads a turn; one that nobody will end is ended first.
func (s *Service) exchange(ctx context.Context, id ident.ConversationID, turn ident.TurnID) (Exchange, error) {
	t, user, assistant, err := s.store.FindTurn(ctx, id, turn)
	if err != nil {
		return Exchange{}, err
	}
	return s.settled(ctx, id, t, user, assistant)
}

// settled is the exchange as it was read, or anew when somebody had to end the turn first.
func (s *Service) settled(ctx context.Context, id ident.ConversationID, t Turn, user, assistant Message) (Exchange, error) {
	if !t.State.Final() && s.engine.dead(t.ID, t.Node, t.Lease) {
		err := s.settle(ctx, t.ID)
		if Unwritable(err) {
			if t.State == Waiting {
				e, _ := s.lapse(t, assistant)
				t, assistant = e.Turn, e.Message
			} else {
				t.State, assistant.State = Interrupted, Interrupted
			}
			return Exchange{User: user, Assistant: &assistant, Turn: &t}, nil
		}
		if err != nil {
			return Exchange{}, err
		}
		if t, user, assistant, err = s.store.FindTurn(ctx, id, t.ID); err != nil {
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

// settle ends a turn that nobody else will end: it is interrupted when its owner is gone, unless the spool knows more of it,
// and has failed when its callback is overdue. It changes nothing when the turn has ended, its owner lives, or it may wait.
func (s *Service) settle(ctx context.Context, turn ident.TurnID) error {
	if s.holds(turn) {
		if err := s.base.restore(ctx, turn); err != nil {
			return err
		}
	}
	orphaned := false
	done, err := s.base.store.EndTurn(ctx, turn, func(t Turn, m Message) (Ending, event.Change, error) {
		orphaned = false
		if t.State.Final() || !s.engine.dead(t.ID, t.Node, t.Lease) {
			return Ending{Turn: t, Message: m}, event.Change{}, nil
		}
		e, ch := s.lapse(t, m)
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

// Sweep stores what the spool has, then ends the turns that nobody else will end: those whose owners are gone, and those
// whose callbacks are overdue. It returns when to look again: the earliest lease among those that go on, soon while the spool
// has something, or zero.
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
	if err := s.pass.Allow(op, actor, access.ReadConversation); err != nil {
		return nil, "", err
	}
	if s.pass.Guest() && in.Project != s.pass.Project {
		return nil, "", nil
	}
	var err error
	if in.Cursor, err = s.opened(op, in.Cursor); err != nil {
		return nil, "", err
	}
	turn, budget := s.searching, s.budget
	if in.guest = s.pass.Guest(); in.guest {
		g, leave := s.base.guests.enter(s.pass.Account)
		defer leave()
		turn, budget = g.turn, g.budget
	}
	done, err := take(ctx, op, turn)
	if err != nil {
		return nil, "", err
	}
	defer done()
	charge, err := s.afford(ctx, budget)
	if err != nil {
		return nil, "", fault.New(fault.Canceled, op, "", "the request ended").With(err)
	}
	if in.guest { // whoever waits to have paid holds up no other guest
		done, err := take(ctx, op, s.base.guests.one)
		if err != nil {
			return nil, "", err
		}
		defer done()
	}
	defer charge()
	hits, next, err := search(ctx, s.store, in)
	return hits, s.closed(next), fault.Wrap(op, err)
}

// searchBurst is how long the searches of a tenant may take before they are held to their share of a processor. Who
// searches now and then notices nothing of it; who searches without a pause gets slower, not everybody else.
const searchBurst = 250 * time.Millisecond

// take waits for a turn.
func take(ctx context.Context, op string, turn chan struct{}) (done func(), err error) {
	select {
	case turn <- struct{}{}:
		return func() { <-turn }, nil
	case <-ctx.Done():
		return nil, fault.New(fault.Canceled, op, "", "the request ended").With(ctx.Err())
	}
}

// afford waits until earlier searches are paid for; charge is called after the next one. The caller has the turn.
func (s *Service) afford(ctx context.Context, budget *rate.Limiter) (charge func(), err error) {
	if budget == nil || !s.tenant.Near() {
		return func() {}, nil
	}
	if err := budget.Wait(ctx); err != nil {
		return nil, err
	}
	began := time.Now()
	return func() {
		budget.ReserveN(time.Now(), int(min(time.Since(began), searchBurst).Microseconds()))
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
	// As streams tell it: the turn's end is the last that is heard of it (decision 0074).
	ch.Add("message.completed", string(m.ID), facts)
	ch.Add("turn."+string(state), string(t.ID), facts)
	ch.Chief = 1
	return Ending{Turn: t, Message: m}, ch
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
