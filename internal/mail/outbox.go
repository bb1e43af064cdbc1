package mail

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base32"
	"encoding/json"
	"log/slog"
	"math/rand/v2"
	"net/mail"
	"sync"
	"time"

	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/seal"
)

// Entry is a mail as it is kept.
type Entry struct {
	Name      string          // there is one per name
	Sealed    []byte          // what it says, and to whom
	Cause     ident.AccountID // see Message
	Attempts  int             // how often it was claimed
	CreatedAt time.Time
}

// Store keeps mails.
type Store interface {
	// PutMail keeps a mail, due at once. One whose name is known is left as it is, and so is one more by a cause that has
	// made [MostPerDay] in the day before it.
	PutMail(ctx context.Context, e Entry) error
	// ClaimMails takes up to limit mails that are due, the longest due first, and counts the attempt. Nobody else gets
	// them before the time until.
	ClaimMails(ctx context.Context, now, until time.Time, limit int) ([]Entry, error)
	// PutOffMail makes a claimed mail due at another time, unless it was claimed again meanwhile.
	PutOffMail(ctx context.Context, e Entry, due time.Time) error
	// SettleMail forgets what a mail says, and its name when the time has come.
	SettleMail(ctx context.Context, name string, forget time.Time) error
	// SweepMails forgets the names whose time has come.
	SweepMails(ctx context.Context, now time.Time) error
}

const (
	// MostPerDay is how many mails one account may cause in a day.
	MostPerDay = 50

	attemptTime = time.Minute
	leaseTime   = 3 * time.Minute // longer than an attempt, so that nobody else begins one meanwhile
	lookEvery   = time.Second
	sweepEvery  = 10 * time.Minute
	atOnce      = 4
	firstPause  = 30 * time.Second
	longPause   = time.Hour
	patience    = 72 * time.Hour
	remembered  = 7 * 24 * time.Hour
	noteEvery   = 250 * time.Millisecond
)

// Config is what an Outbox needs.
type Config struct {
	Store     Store
	Sealer    event.Sealer
	Key       seal.Key  // lasting: what mails are named with
	Transport Transport // nil: nobody is written to
	From      *mail.Address
	// Address is where an account is written to. fault.NotFound: it is gone.
	Address func(ctx context.Context, id ident.AccountID) (string, error)
	Grace   time.Duration // for attempts that are under way when Run is to end (default 3 s)
	Log     *slog.Logger
	Now     func() time.Time
}

// Outbox keeps mails until they are sent. Enqueue may be called by anybody at any time; Run sends.
type Outbox struct {
	Config
	wake chan struct{}
}

// NewOutbox returns an outbox that sends nothing until Run.
func NewOutbox(c Config) *Outbox {
	if c.Grace <= 0 {
		c.Grace = 3 * time.Second
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Outbox{Config: c, wake: make(chan struct{}, 1)}
}

// Enqueue keeps a mail and returns when that is on disk. The key names the notice, as in "webhook.paused whk_… 17": of
// all mails with one key one is sent, also when the first was sent already (within a week). Keys are kept as keyed hashes, so
// one may hold an address. Where no mail can be sent, nothing is kept.
func (o *Outbox) Enqueue(ctx context.Context, key string, m Message) error {
	const op = "mail.Enqueue"
	e, err := o.Seal(key, m)
	if err != nil || e == nil {
		return fault.Wrap(op, err)
	}
	if err := o.Store.PutMail(ctx, *e); err != nil {
		return fault.Wrap(op, err)
	}
	o.Wake()
	return nil
}

// Seal prepares a mail for a store that keeps it together with what it tells of. It is nil where no mail can be sent.
func (o *Outbox) Seal(key string, m Message) (*Entry, error) {
	const op = "mail.Seal"
	if err := m.check(); err != nil {
		return nil, err
	}
	if key == "" || len(key) > maxKey {
		return nil, fault.New(fault.Internal, op, "mail_malformed", "a mail needs a key of at most 200 bytes")
	}
	if o.Transport == nil {
		return nil, nil
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return nil, fault.Wrap(op, err)
	}
	name := o.name(key)
	return &Entry{Name: name, Sealed: o.Sealer.Seal(purpose, raw, []byte(name)), Cause: m.Cause,
		CreatedAt: o.Now().UTC().Truncate(time.Microsecond)}, nil
}

// name is what a mail is called wherever its key would say too much.
func (o *Outbox) name(key string) string {
	mac := hmac.New(sha256.New, o.Key[:])
	mac.Write([]byte(key))
	return nameText.EncodeToString(mac.Sum(nil)[:16])
}

var nameText = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

// purpose is what mails are sealed for.
const purpose = "mail"

// Wake makes Run look at once.
func (o *Outbox) Wake() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// Run sends what is due until ctx ends. Attempts that are under way then get a moment to end.
func (o *Outbox) Run(ctx context.Context) error {
	if o.Transport == nil {
		return nil
	}
	look, sweep := time.NewTicker(lookEvery), time.NewTicker(sweepEvery)
	defer look.Stop()
	defer sweep.Stop()
	for ctx.Err() == nil {
		n, err := o.round(ctx)
		if err != nil && ctx.Err() == nil {
			o.Log.Warn("mails not looked at", "code", fault.CodeOf(err))
		}
		if n == atOnce {
			continue // there may be more
		}
		select {
		case <-ctx.Done():
		case <-o.wake:
		case <-look.C:
		case <-sweep.C:
			if err := o.Store.SweepMails(ctx, o.Now()); err != nil && ctx.Err() == nil {
				o.Log.Warn("mails not swept", "code", fault.CodeOf(err))
			}
		}
	}
	return nil
}

// round claims what is due and sends it. It returns how many there were.
func (o *Outbox) round(ctx context.Context) (int, error) {
	now := o.Now()
	list, err := o.Store.ClaimMails(ctx, now, now.Add(leaseTime), atOnce)
	if err != nil {
		return 0, err
	}
	// Whoever stops the server does not leave a mail half said: nobody could tell then whether it was sent.
	sending, cancel := context.WithTimeout(context.WithoutCancel(ctx), attemptTime)
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(o.Grace, cancel) })()
	var busy sync.WaitGroup
	for _, e := range list {
		busy.Go(func() { o.attempt(sending, ctx, e) })
	}
	busy.Wait()
	return len(list), nil
}

// attempt sends one mail and notes what came of it. stop is over when the server stops.
func (o *Outbox) attempt(ctx, stop context.Context, e Entry) {
	err := o.send(ctx, e)
	now := o.Now()
	switch over := now.Sub(e.CreatedAt) >= patience; {
	case err == nil:
		o.note(stop, func(ctx context.Context) error { return o.Store.SettleMail(ctx, e.Name, now.Add(remembered)) })
	case over || fault.CodeOf(err) == CodeRejected || fault.Is(err, fault.NotFound):
		if !fault.Is(err, fault.NotFound) { // an account that is gone needs no mail
			o.Log.Error("mail given up", "mail", e.Name, "code", fault.CodeOf(err), "reason", reason(err), "attempts", e.Attempts)
		}
		o.note(stop, func(ctx context.Context) error { return o.Store.SettleMail(ctx, e.Name, now.Add(remembered)) })
	default:
		due := now
		if stop.Err() == nil { // else the next process tries again at once
			due = o.next(now, e)
			o.Log.Warn("mail not sent", "mail", e.Name, "code", fault.CodeOf(err), "reason", reason(err), "attempts", e.Attempts, "next", due)
		}
		o.note(stop, func(ctx context.Context) error { return o.Store.PutOffMail(ctx, e, due) })
	}
}

// reason is the safe part of an error.
func reason(err error) string {
	if f, ok := err.(*fault.Error); ok { //nolint:errorlint // the outermost one speaks
		return f.Message
	}
	return ""
}

// next is when to try again: later each time, never all at the same moment, and once more at the very end.
func (o *Outbox) next(now time.Time, e Entry) time.Time {
	pause := longPause
	if n := e.Attempts - 1; n < 7 { // 30 s doubled seven times is more than an hour
		pause = min(firstPause<<max(0, n), longPause)
	}
	pause = pause*4/5 + rand.N(pause*2/5) //nolint:gosec // it spreads load and keeps no secret
	due := now.Add(pause)
	if last := e.CreatedAt.Add(patience); due.After(last) {
		return last
	}
	return due
}

// note stores what came of an attempt, and tries that as long as the mail is ours: a mail that was sent and not noted would
// be sent again.
func (o *Outbox) note(stop context.Context, store func(context.Context) error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(stop), leaseTime-attemptTime)
	defer cancel()
	defer context.AfterFunc(stop, func() { time.AfterFunc(o.Grace, cancel) })()
	again := time.NewTicker(noteEvery)
	defer again.Stop()
	for {
		err := store(ctx)
		if err == nil {
			return
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			o.Log.Warn("mail not noted, it may come twice", "code", fault.CodeOf(err))
			return
		}
	}
}

func (o *Outbox) send(ctx context.Context, e Entry) error {
	const op = "mail.send"
	raw, err := o.Sealer.Open(purpose, e.Sealed, []byte(e.Name))
	if err != nil {
		return fault.Wrap(op, err)
	}
	var m Message
	if err := json.Unmarshal(raw, &m); err != nil {
		return fault.New(fault.Internal, op, CodeRejected, "what is kept is no mail")
	}
	to := m.To
	if m.Account != "" {
		if to, err = o.Address(ctx, m.Account); err != nil {
			return fault.Wrap(op, err)
		}
	}
	return o.Transport.Send(ctx, newLetter(o.From, to, e.Name, m, e.CreatedAt))
}
