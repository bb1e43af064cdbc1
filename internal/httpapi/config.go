package httpapi

import (
	"context"
	"log/slog"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"claude-memory-backend/internal/access"
	"claude-memory-backend/internal/audit"
	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/job"
	"claude-memory-backend/internal/member"
	"claude-memory-backend/internal/project"
	"claude-memory-backend/internal/relocate"
	"claude-memory-backend/internal/seal"
	"claude-memory-backend/internal/sqlstore"
	"claude-memory-backend/internal/tenant"
	"claude-memory-backend/internal/webhook"
	"claude-memory-backend/internal/workspace"
)

// Config is what an operator decides about the door. The zero value of a limit means its default.
type Config struct {
	Production     bool
	Version        string         // shown by health and info
	AllowedOrigins []string       // exact origins ("https://app.example") that browsers may call from
	TrustedProxies []netip.Prefix // peers whose X-Forwarded-For is believed
	MetricsToken   string         // opens metrics and detailed health; empty: admins only, in production
	RateLimit      bool           // false switches all rate limits off
	DocsPage       bool           // serve the documentation page
	QueryToken     bool           // a WebSocket may have its access token in the address
	OnceSecret     []byte         // keys the fingerprints of idempotent requests; at least 32 bytes

	PerAccount         Rate          // requests of one account; default 1,200 a minute, bursts of 200
	PerAddress         Rate          // requests without an account from one address; default 600 a minute, bursts of 200
	PerAddressIn       Rate          // registrations, logins and refreshes from one address; default 60 a minute, bursts of 60
	PerAddressDelivery Rate          // answers delivered from one address; default 6,000 a minute, bursts of 500
	LimitedKeys        int           // accounts and addresses remembered at once; default 100,000
	BodyLimit          int64         // default 1 MiB
	MessageLimit       int64         // body of a sent message; default 4 MiB
	RequestTime        time.Duration // for anything that does not wait for a model; default 30 s
	BodyTime           time.Duration // to receive a body; default 30 s
	PingEvery          time.Duration // pings of a stream; default 15 s
	EraseTime          time.Duration // how long a request to erase waits for its end; default 15 s
	DrainTime          time.Duration // how long requests and streams may take to end when the server stops; default 25 s
	// Linger is open while the stopping server still has work that clients may want to hear of; nil: it has none.
	Linger <-chan struct{}
}

// Rate is a sustained number of requests a minute and how many may come at once.
type Rate struct{ PerMinute, Burst int }

func (c Config) withDefaults() Config {
	rate := func(r *Rate, perMinute, burst int) {
		if r.PerMinute <= 0 {
			r.PerMinute = perMinute
		}
		if r.Burst <= 0 {
			r.Burst = burst
		}
	}
	rate(&c.PerAccount, 1200, 200)
	rate(&c.PerAddress, 600, 200)
	rate(&c.PerAddressIn, 60, 60)
	rate(&c.PerAddressDelivery, 6000, 500)
	if c.LimitedKeys <= 0 {
		c.LimitedKeys = 100_000
	}
	size := func(n *int64, otherwise int64) {
		if *n <= 0 {
			*n = otherwise
		}
	}
	size(&c.BodyLimit, 1<<20)
	size(&c.MessageLimit, 4<<20)
	span := func(d *time.Duration, otherwise time.Duration) {
		if *d <= 0 {
			*d = otherwise
		}
	}
	span(&c.RequestTime, 30*time.Second)
	span(&c.BodyTime, 30*time.Second)
	span(&c.PingEvery, 15*time.Second)
	span(&c.EraseTime, 15*time.Second)
	span(&c.DrainTime, 25*time.Second)
	if c.Version == "" {
		c.Version = "development"
	}
	return c
}

// Deps is what the door calls.
type Deps struct {
	Accounts Accounts
	// Open opens the tenant's services for one request; the door calls Release, once or more. Whether the actor may see the
	// tenant is the opener's business.
	Open func(ctx context.Context, actor ident.Actor, tenant ident.TenantID) (Workspace, error)
	// Visit opens what somebody else's tenant has for the actor as a guest: the services of the one project that the
	// subject, a project or a conversation, is or is in. It is asked for what is not in the actor's own tenant; NotFound:
	// nobody shares that with the actor.
	Visit func(ctx context.Context, actor ident.Actor, subject string) (Workspace, error)
	// Enter is Open for the workspace in which a project lives, the actor's own or somebody else's.
	Enter func(ctx context.Context, actor ident.Actor, own ident.TenantID, subject string) (Workspace, error)
	// Listen tells a listener of everything in a tenant's log after the position that it returns.
	Listen func(ctx context.Context, tenant ident.TenantID, l workspace.Listener) (event.Seq, func(), error)
	// Again lets an account read a part of a tenant's log again, when it is its turn; done is called with how many events that looked
	// at. It is Throttled when that does not come before ctx is due. Nil: there is no bound.
	Again func(ctx context.Context, tenant ident.TenantID, who ident.AccountID, guest bool) (done func(looked int), err error)
	Live  Live
	// Callback reads the token of an address at which an answer may be delivered; NotFound: it is none of ours, or too old. Nil,
	// like a nil Deliverer: nobody delivers any.
	Callback  func(token string) (workspace.Callback, error)
	Deliverer Deliverer
	// What follows concerns whole tenants: it works while the tenant's own database does not.
	Databases Databases
	Jobs      Jobs
	Eraser    Eraser
	Proof     Proof
	// Ready reports why the server should get no requests yet; nil means it should.
	Ready func(ctx context.Context) error
	// Checks are shown by detailed health, in this order.
	Checks []Check
	// Collectors are added to the server's own metrics: pools, turns.
	Collectors []prometheus.Collector
	Log        *slog.Logger
	Now        func() time.Time
}

// Check looks at one thing that the server depends on.
type Check struct {
	Name string
	// Look returns facts worth showing, without secrets, and an error when the thing does not work.
	Look func(ctx context.Context) (facts map[string]any, err error)
}

// Workspace is a tenant's services while a request uses them.
type Workspace struct {
	Projects      Projects
	Members       Members
	Conversations Conversations
	Turns         Turns
	Webhooks      Webhooks         // nil for guests
	Audit         Trail            // nil for guests
	Events        event.ProjectLog // a guest's shows the one project
	Tenant        ident.TenantID   // whose workspace it is
	// Usage is how much the tenant keeps and what it may keep, 0 for no limit; nil for guests.
	Usage func(ctx context.Context) (tenant.Usage, tenant.Limits, error)
	// While returns a context that ends, with a cause that is NoAccess, when the actor may not see any more what was opened;
	// nil: the actor always may.
	While   func(ctx context.Context) (context.Context, context.CancelFunc)
	Waited  time.Duration // for the tenant's database to be opened; 0 when it was open
	Release func()
}

// Projects is project.Service as the door sees it.
type Projects interface {
	Create(ctx context.Context, actor ident.Actor, in project.CreateInput) (project.Project, error)
	List(ctx context.Context, actor ident.Actor, q project.Query) ([]project.Project, string, error)
	Find(ctx context.Context, actor ident.Actor, id ident.ProjectID) (project.Project, error)
	Edit(ctx context.Context, actor ident.Actor, id ident.ProjectID, ifVersion *int64,
		change func(*project.Details) error) (project.Project, error)
	Delete(ctx context.Context, actor ident.Actor, id ident.ProjectID, ifVersion *int64, dropConversations bool) error
}

// Members is member.Service as the door sees it.
type Members interface {
	List(ctx context.Context, actor ident.Actor, id ident.ProjectID, cursor string, limit int) ([]member.Member, string, error)
	Add(ctx context.Context, actor ident.Actor, id ident.ProjectID, in member.AddInput) (member.Member, error)
	Change(ctx context.Context, actor ident.Actor, id ident.ProjectID, key string, role access.Role) (member.Member, error)
	Remove(ctx context.Context, actor ident.Actor, id ident.ProjectID, key string) error
}

// Conversations is the part of conversation.Service that keeps and finds.
type Conversations interface {
	Create(ctx context.Context, actor ident.Actor, in conversation.CreateInput) (conversation.Conversation, error)
	List(ctx context.Context, actor ident.Actor, q conversation.Query) ([]conversation.Conversation, string, error)
	Find(ctx context.Context, actor ident.Actor, id ident.ConversationID) (conversation.Conversation, error)
	Edit(ctx context.Context, actor ident.Actor, id ident.ConversationID, ifVersion *int64,
		change func(*conversation.Details) error) (conversation.Conversation, error)
	Delete(ctx context.Context, actor ident.Actor, id ident.ConversationID, ifVersion *int64) error
	Messages(ctx context.Context, actor ident.Actor, id ident.ConversationID,
		q conversation.MessageQuery) ([]conversation.Message, string, error)
	Search(ctx context.Context, actor ident.Actor, in conversation.SearchInput) ([]conversation.Hit, string, error)
}

// Turns is the part of conversation.Service that asks models.
type Turns interface {
	Send(ctx context.Context, actor ident.Actor, id ident.ConversationID,
		in conversation.SendInput) (conversation.Exchange, error)
	Retry(ctx context.Context, actor ident.Actor, id ident.ConversationID, turn ident.TurnID,
		in conversation.AgainInput) (conversation.Exchange, error)
	Continue(ctx context.Context, actor ident.Actor, id ident.ConversationID, turn ident.TurnID,
		in conversation.AgainInput) (conversation.Exchange, error)
	Stop(ctx context.Context, actor ident.Actor, id ident.ConversationID, turn ident.TurnID) (conversation.Turn, error)
	Turn(ctx context.Context, actor ident.Actor, id ident.ConversationID,
		turn ident.TurnID) (conversation.Exchange, error)
	Await(ctx context.Context, actor ident.Actor, id ident.ConversationID,
		turn ident.TurnID) (conversation.Exchange, error)
	Follow(ctx context.Context, actor ident.Actor, id ident.ConversationID, turn ident.TurnID, lastEventID string,
		emit func(conversation.Moment) error) error
	Deliver(ctx context.Context, actor ident.Actor, id ident.ConversationID, turn ident.TurnID,
		d conversation.Delivery) (conversation.Turn, conversation.Reception, error)
	// Here reports whether this very server runs the turn.
	Here(turn ident.TurnID) bool
}

// Webhooks is webhook.Service as the door sees it.
type Webhooks interface {
	Create(ctx context.Context, actor ident.Actor, in webhook.CreateInput) (webhook.Issued, error)
	List(ctx context.Context, actor ident.Actor, project ident.ProjectID, cursor string, limit int) ([]webhook.Endpoint, string, error)
	Find(ctx context.Context, actor ident.Actor, id ident.WebhookID) (webhook.Endpoint, error)
	Edit(ctx context.Context, actor ident.Actor, id ident.WebhookID, ifVersion *int64, change func(*webhook.Edit) error) (webhook.Endpoint, error)
	Delete(ctx context.Context, actor ident.Actor, id ident.WebhookID, ifVersion *int64) error
	Rotate(ctx context.Context, actor ident.Actor, id ident.WebhookID, once *event.Once) (webhook.Issued, error)
	Test(ctx context.Context, actor ident.Actor, id ident.WebhookID, once *event.Once) (webhook.Delivery, error)
	Deliveries(ctx context.Context, actor ident.Actor, id ident.WebhookID, q webhook.DeliveryQuery) ([]webhook.Delivery, string, error)
	Delivery(ctx context.Context, actor ident.Actor, id ident.WebhookID, d ident.DeliveryID) (webhook.Delivery, error)
	Redeliver(ctx context.Context, actor ident.Actor, id ident.WebhookID, d ident.DeliveryID, once *event.Once) (webhook.Delivery, error)
	RedeliverMany(ctx context.Context, actor ident.Actor, id ident.WebhookID, r webhook.Range, once *event.Once) (webhook.Redelivered, error)
}

// Databases is the part of relocate.Service that decides where a tenant's data lives.
type Databases interface {
	ListDatabases(ctx context.Context, actor ident.Actor, of ident.TenantID, cursor string, limit int) ([]tenant.Database, string, error)
	Database(ctx context.Context, actor ident.Actor, of ident.TenantID, id ident.DatabaseID) (tenant.Database, error)
	Register(ctx context.Context, actor ident.Actor, of ident.TenantID, in relocate.NewDatabase) (tenant.Database, error)
	Test(ctx context.Context, actor ident.Actor, of ident.TenantID, a tenant.Address, password seal.Secret) (sqlstore.Report, error)
	TestDatabase(ctx context.Context, actor ident.Actor, of ident.TenantID, id ident.DatabaseID) (sqlstore.Report, error)
	EditDatabase(ctx context.Context, actor ident.Actor, of ident.TenantID, id ident.DatabaseID, ifVersion *int64,
		change func(*relocate.DatabaseEdit) error) (tenant.Database, error)
	Remove(ctx context.Context, actor ident.Actor, of ident.TenantID, id ident.DatabaseID, ifVersion *int64) error
	Activate(ctx context.Context, actor ident.Actor, of ident.TenantID, id ident.DatabaseID, once *event.Once) (job.Job, error)
	Release(ctx context.Context, actor ident.Actor, of ident.TenantID, id ident.DatabaseID) (tenant.Database, error)
}

// Jobs is the part of relocate.Service that tells of jobs.
type Jobs interface {
	Jobs(ctx context.Context, actor ident.Actor, f job.Filter, cursor string, limit int) ([]job.Job, string, error)
	Job(ctx context.Context, actor ident.Actor, id ident.JobID) (job.Job, error)
	CancelJob(ctx context.Context, actor ident.Actor, id ident.JobID) (job.Job, error)
}

// Eraser is the part of relocate.Service that erases.
type Eraser interface {
	Erase(ctx context.Context, actor ident.Actor, of ident.TenantID, what string) (job.Job, error)
	Await(ctx context.Context, id ident.JobID) (job.Job, error)
}

// Proof is the part of account.Service that erasing needs.
type Proof interface {
	// Prove checks the actor's password once more.
	Prove(ctx context.Context, actor ident.Actor, password string) error
	// Forget drops what is remembered of the account's sessions.
	Forget(id ident.AccountID)
}

// Trail reads the tenant's audit trail.
type Trail interface {
	List(ctx context.Context, actor ident.Actor, f audit.Filter, cursor string, limit int) ([]audit.Entry, string, error)
}
