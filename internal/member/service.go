package member

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"slices"
	"time"

	"claude-memory-backend/internal/access"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/mail"
)

// Service is what doors call. One exists per open tenant and pass.
type Service struct {
	store    Store
	projects Projects
	sealer   event.Sealer
	bus      event.Bus
	tenant   ident.TenantID
	owner    ident.AccountID
	pass     access.Pass
	now      func() time.Time
	notice   Notice
}

// Notice writes the mail that an invitation is told by; nil: there is none.
type Notice func(inviter ident.Actor, m Member) (*mail.Entry, error)

// Config is what a Service needs.
type Config struct {
	Store    Store
	Projects Projects // of the tenant
	Sealer   event.Sealer
	Bus      event.Bus
	Tenant   ident.TenantID
	Owner    ident.AccountID
	Pass     access.Pass
	Now      func() time.Time
	Notice   Notice // nil: who is invited is told by whoever invites
}

// New builds the service.
func New(c Config) *Service {
	return &Service{store: c.Store, projects: c.Projects, sealer: c.Sealer, bus: c.Bus, tenant: c.Tenant, owner: c.Owner,
		pass: c.Pass, now: c.Now, notice: c.Notice}
}

// For is the same service for a guest, whose projects are those that the guest may see.
func (s *Service) For(pass access.Pass, projects Projects) *Service {
	c := *s
	c.pass, c.projects = pass, projects
	return &c
}

// AddInput asks somebody in.
type AddInput struct {
	Email string
	Role  access.Role
	Once  *event.Once
}

// List returns a page of the members of a project, the owner first, and the next cursor; who may manage them sees the
// invitations too.
func (s *Service) List(ctx context.Context, actor ident.Actor, id ident.ProjectID, cursor string, limit int) ([]Member, string, error) {
	const op = "member.List"
	if err := s.pass.Allow(op, actor, access.ReadProject); err != nil {
		return nil, "", err
	}
	if err := s.projects.HasProject(ctx, id); err != nil {
		return nil, "", fault.Wrap(op, err)
	}
	list, err := s.store.ListMembers(ctx, s.place(id))
	if err != nil {
		return nil, "", fault.Wrap(op, err)
	}
	if s.pass.Allow(op, actor, access.ManageMembers) != nil {
		list = slices.DeleteFunc(list, func(m Member) bool { return m.State == Invited })
	}
	if cursor != "" {
		var from seat
		if !from.parse(cursor) {
			return nil, "", fault.BadInput(op, "query.cursor", "is not a cursor of this listing")
		}
		list = slices.DeleteFunc(list, func(m Member) bool { return seatOf(m).compare(from) <= 0 })
	}
	if limit = max(1, limit); len(list) <= limit {
		return list, "", nil
	}
	return list[:limit], seatOf(list[limit-1]).format(), nil
}

// seat is a member's place in the listing, whoever comes and goes.
type seat struct {
	Rank  int    `json:"r"` // owner, members, invited
	Since int64  `json:"s"`
	Key   string `json:"k"`
}

func seatOf(m Member) seat {
	s := seat{Rank: 1, Since: ident.Micros(m.Since), Key: m.Key()}
	switch {
	case m.Role == access.Owner:
		s.Rank = 0
	case m.State == Invited:
		s.Rank = 2
	}
	return s
}

func (s seat) compare(o seat) int {
	return cmp.Or(cmp.Compare(s.Rank, o.Rank), cmp.Compare(s.Since, o.Since), cmp.Compare(s.Key, o.Key))
}

func (s seat) format() string {
	raw, err := json.Marshal(s)
	if err != nil {
		panic("a cursor that cannot be marshalled") // numbers and text
	}
	return base64.RawURLEncoding.EncodeToString(raw)
}

func (s *seat) parse(cursor string) bool {
	raw, err := base64.RawURLEncoding.DecodeString(cursor)
	return err == nil && json.Unmarshal(raw, s) == nil
}

// Add makes the account with the address a member at once, or invites the address.
func (s *Service) Add(ctx context.Context, actor ident.Actor, id ident.ProjectID, in AddInput) (Member, error) {
	const op = "member.Add"
	if err := s.pass.Allow(op, actor, access.ManageMembers); err != nil {
		return Member{}, err
	}
	var c fault.Checks
	email := c.Email("body.email", in.Email)
	checkRole(&c, in.Role)
	if err := c.Err(op); err != nil {
		return Member{}, err
	}
	if err := s.open(ctx, id); err != nil {
		return Member{}, fault.Wrap(op, err)
	}
	p := s.place(id)
	shared, err := s.store.IsShared(ctx, p)
	if err != nil {
		return Member{}, fault.Wrap(op, err)
	}
	now := s.moment()
	m, err := s.store.AddMember(ctx, p, Member{Email: email, Role: in.Role, Since: now}, func(m *Member) (event.Change, error) {
		ch := event.NewChange(actor, now)
		kind := "member.added"
		if m.State == Invited {
			m.Invitation, kind = ident.New[ident.InvitationID](), "member.invited"
		}
		if err := in.Once.Keep(s.sealer, *m); err != nil {
			return ch, err
		}
		ch.Once = in.Once
		ch.Add(kind, string(id), facts(p, *m))
		if m.State != Invited || s.notice == nil {
			return ch, nil
		}
		var err error
		m.Notice, err = s.notice(actor, *m)
		return ch, err
	})
	if was, ok, rerr := s.replay(ctx, in.Once, err); ok {
		return was, fault.Wrap(op, rerr)
	}
	if err != nil {
		return Member{}, fault.Wrap(op, err)
	}
	s.signal(ctx, m)
	if !shared {
		// Whoever adds a conversation asks once more, when it is there, whether the project is shared, and then says itself
		// where it is. What was there before is in the list.
		if err := s.route(ctx, p); err != nil {
			return Member{}, fault.Wrap(op, err)
		}
	}
	return m, nil
}

// replay answers a repeat of an earlier call with that one's result: somebody can be added but once.
func (s *Service) replay(ctx context.Context, once *event.Once, err error) (was Member, ok bool, _ error) {
	repeated := event.Repeated(err)
	if once == nil || !repeated && fault.CodeOf(err) != CodeExists {
		return was, false, nil
	}
	rerr := once.Replay(ctx, s.store, s.sealer, &was)
	return was, repeated || !fault.Is(rerr, fault.NotFound), rerr
}

// open refuses what adds to a project, or lets somebody do more in it, while its tenant may not be changed. Access can be
// taken away at any time.
func (s *Service) open(ctx context.Context, id ident.ProjectID) error {
	if err := s.projects.HasProject(ctx, id); err != nil {
		return err
	}
	return s.projects.Writable()
}

func (s *Service) route(ctx context.Context, p Place) error {
	parts, err := s.projects.Parts(ctx, p.Project)
	if err != nil {
		return err
	}
	return s.store.PutRoutes(ctx, p, parts)
}

// Change gives a member, or somebody who is invited, another role.
func (s *Service) Change(ctx context.Context, actor ident.Actor, id ident.ProjectID, key string, role access.Role) (Member, error) {
	const op = "member.Change"
	if err := s.pass.Allow(op, actor, access.ManageMembers); err != nil {
		return Member{}, err
	}
	var c fault.Checks
	checkRole(&c, role)
	if err := c.Err(op); err != nil {
		return Member{}, err
	}
	if err := s.open(ctx, id); err != nil {
		return Member{}, fault.Wrap(op, err)
	}
	if key == string(s.owner) {
		return Member{}, ownerStays(op)
	}
	p := s.place(id)
	m, err := s.store.ChangeMember(ctx, p, key, func(m Member) (Member, event.Change, error) {
		if m.Role == role {
			return m, event.Change{}, nil
		}
		m.Role = role
		ch := event.NewChange(actor, s.moment())
		ch.Add("member.changed", string(id), facts(p, m))
		return m, ch, nil
	})
	if err != nil {
		return Member{}, fault.Wrap(op, err)
	}
	s.signal(ctx, m)
	return m, nil
}

// Remove ends a membership or takes an invitation back. Members may remove themselves; the owner stays.
func (s *Service) Remove(ctx context.Context, actor ident.Actor, id ident.ProjectID, key string) error {
	const op = "member.Remove"
	may := access.ManageMembers
	if key == string(actor.Account) {
		may = access.ReadProject // whoever is in may leave
	}
	if err := s.pass.Allow(op, actor, may); err != nil {
		return err
	}
	if err := s.projects.HasProject(ctx, id); err != nil {
		return fault.Wrap(op, err)
	}
	if key == string(s.owner) {
		return ownerStays(op)
	}
	p := s.place(id)
	m, err := s.store.RemoveMember(ctx, p, key, func(m Member) (event.Change, error) {
		ch := event.NewChange(actor, s.moment())
		ch.Add("member.removed", string(id), facts(p, m))
		return ch, nil
	})
	if err != nil {
		return fault.Wrap(op, err)
	}
	s.signal(ctx, m)
	return nil
}

// CodeExists refuses to add who is a member, or invited, already.
const CodeExists = "member_exists"

func ownerStays(op string) error {
	return fault.New(fault.Conflict, op, "owner_stays", "the owner of a project is always a member of it, as its owner")
}

func checkRole(c *fault.Checks, r access.Role) {
	if !slices.Contains(access.Given(), r) {
		c.Add("body.role", "must be one of editor, commenter, viewer")
	}
}

// facts are what an event tells of a member: ids, never an address.
func facts(p Place, m Member) map[string]any {
	f := map[string]any{"project_id": p.Project, "role": m.Role}
	if m.State == Invited {
		f["invitation_id"] = m.Invitation
	} else {
		f["user_id"] = m.Account
	}
	return f
}

func (s *Service) place(id ident.ProjectID) Place {
	return Place{Project: id, Tenant: s.tenant, Owner: s.owner}
}

// signal tells whoever shows the member something, on any node, that it may not be so any more.
func (s *Service) signal(ctx context.Context, m Member) {
	if m.Account != "" {
		s.bus.Publish(ctx, event.Signal{Topic: event.AccessTopic(m.Account), Kind: event.Access})
	}
}

func (s *Service) moment() time.Time { return s.now().UTC().Truncate(time.Microsecond) }
