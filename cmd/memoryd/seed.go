package main

import (
	"context"
	"errors"
	"fmt"

	"claude-memory-backend/internal/account"
	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/event"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/project"
	"claude-memory-backend/internal/workspace"
)

type seedCmd struct{}

// Run fills a development installation with somebody and something to look at, through the services that a request goes
// through. What is there already stays as it is, and what an earlier run did not finish is finished.
func (seedCmd) Run(ctx context.Context, p *program) error {
	s := p.settings
	if s.production() {
		return usageError{errors.New("seed is for development: it makes an account with a password that everybody knows")}
	}
	log, closeLog := newLog(s, p.stderr)
	defer closeLog()
	bus := event.NewLocalBus()
	in, err := openInstall(ctx, s, log, bus, owner)
	if errors.Is(err, errFolderTaken) {
		return errors.New("a server works in this folder: stop it, seed, and start it again")
	}
	if err != nil {
		return err
	}
	defer func() { warn(log, "databases", in.close()) }()
	accounts, err := newAccounts(s, log, in)
	if err != nil {
		return err
	}
	said := &teller{}
	engine := conversation.NewEngine(conversation.Config{Node: "seed " + string(ident.New[ident.EventID]()), Sole: in.sole, Bus: bus, Log: log,
		Models: map[string]conversation.Model{"scripted": said}, Known: []string{"scripted"}, Default: "scripted"})
	pool := workspace.NewPool(workspace.Config{Directory: in.store, Notes: in.store, Master: in.store, Grants: in.store, Hints: in.store, Trail: in.store.Trail(),
		Placements: in.placements, Engine: engine, Bus: bus, Sealer: in.keys, Providers: []string{"scripted"}, Log: log, Sole: in.sole,
		Limits: defaultLimits(s)})
	defer func() {
		rest := context.WithoutCancel(ctx)
		warn(log, "turns", engine.Close(rest)) // titles are made in the background
		warn(log, "tenants", pool.Close(rest))
	}()

	a, err := accounts.Create(ctx, account.CreateInput{Email: demoEmail, Password: demoPassword, Name: "Demo", Role: ident.Admin})
	if fault.Is(err, fault.Conflict) {
		a, _, err = in.store.FindByEmail(ctx, account.Fold(demoEmail))
	}
	if err != nil {
		return err
	}
	actor := ident.Actor{Account: a.ID, Name: a.Name}
	ws, err := pool.Acquire(ctx, actor, a.Tenant)
	if err != nil {
		return err
	}
	defer ws.Release()
	d := demo{ws: ws, actor: actor, said: said}
	for _, part := range demoProjects() {
		if err := d.plant(ctx, part); err != nil {
			return err
		}
	}
	fmt.Fprintf(p.stdout, "%d projects, %d conversations and %d messages were added\nsign in as %s with the password %q\n", d.projects,
		d.talks, d.messages, demoEmail, demoPassword)
	return nil
}

const (
	demoEmail    = "demo@example.com"
	demoPassword = "a demo of a lighthouse" //nolint:gosec // of made-up data, and printed
)

// demoProject is a project, or with no name what belongs to none.
type demoProject struct {
	project.Details
	talks []demoTalk
}

// demoTalk is a conversation: what is asked and what is answered, in turn.
type demoTalk struct {
	title string
	lines []string
}

// teller is a model that says what it is given.
type teller struct{ next string }

func (t *teller) Answer(_ context.Context, _ conversation.Prompt, sink func(string)) (conversation.Answer, error) {
	sink(t.next)
	return conversation.Answer{Text: t.next, StopReason: "end_turn"}, nil
}

// demo plants what is not there, and counts.
type demo struct {
	ws                        *workspace.Workspace
	actor                     ident.Actor
	said                      *teller
	projects, talks, messages int
}

func (d *demo) plant(ctx context.Context, part demoProject) error {
	home, err := d.project(ctx, part.Details)
	if err != nil {
		return err
	}
	for _, talk := range part.talks {
		c, err := d.conversation(ctx, home, talk.title)
		if err != nil {
			return err
		}
		for at := int(c.MessageCount); at+1 < len(talk.lines); at += 2 {
			d.said.next = talk.lines[at+1]
			x, err := d.ws.Conversations.Send(ctx, d.actor, c.ID, conversation.SendInput{Text: talk.lines[at], Reply: true})
			if err != nil {
				return err
			}
			if _, err := d.ws.Conversations.Await(ctx, d.actor, c.ID, x.Turn.ID); err != nil {
				return err
			}
			d.messages += 2
		}
	}
	return nil
}

// project finds a project by its name, or makes it.
func (d *demo) project(ctx context.Context, details project.Details) (ident.ProjectID, error) {
	if details.Name == "" {
		return "", nil
	}
	list, _, err := d.ws.Projects.List(ctx, d.actor, project.Query{Text: details.Name, Limit: 100})
	if err != nil {
		return "", err
	}
	for _, p := range list {
		if p.Name == details.Name {
			return p.ID, nil
		}
	}
	p, err := d.ws.Projects.Create(ctx, d.actor, project.CreateInput{Details: details})
	d.projects++
	return p.ID, err
}

// conversation finds one by its title, or starts it.
func (d *demo) conversation(ctx context.Context, home ident.ProjectID, title string) (conversation.Conversation, error) {
	list, _, err := d.ws.Conversations.List(ctx, d.actor, conversation.Query{Title: title, Limit: 100})
	if err != nil {
		return conversation.Conversation{}, err
	}
	for _, c := range list {
		if c.Title == title {
			return c, nil
		}
	}
	c, err := d.ws.Conversations.Create(ctx, d.actor, conversation.CreateInput{Details: conversation.Details{Title: title, ProjectID: home}})
	d.talks++
	return c, err
}

func demoProjects() []demoProject {
	return []demoProject{
		{project.Details{Name: "Lighthouse restoration", Description: "The old lighthouse at the harbour gets a new lamp and a museum.",
			Instructions: "Be brief. Name the source of every figure.", Priority: project.High, Color: "#c2410c", Tags: []string{"heritage", "2026"}},
			[]demoTalk{
				{"Which lamp fits the old lens", []string{
					"The lens is a third-order Fresnel from 1894. Which lamps fit it without changing the mounting?",
					"A third-order lens has an inner radius of 500 mm. An LED lamp on a column of that height fits the old mounting; the focal point has to stay within 5 mm of where the oil burner's flame stood.",
					"How many watts would that be?",
					"Between 20 and 60 watts, depending on the range that the authority asks for. The oil burner was far weaker: the lens does most of the work."}},
				{"Opening hours of the museum", []string{
					"The museum should open when the ferry comes. Ferries arrive at 9:40, 13:10 and 16:30. Suggest opening hours.",
					"Open from 9:30 to 17:30. That leaves ten minutes before the first ferry and an hour after the last one; closing at noon would miss the second."}},
				{"Grant application, first draft", []string{
					"Draft the first paragraph of the application to the heritage fund.",
					"For 130 years the light at our harbour has led ships home. Its tower is sound, its lens is whole, and its lamp is not. We ask the fund to help us light it again, and to open it to those whom it has served."}},
			}},
		{project.Details{Name: "Migration to PostgreSQL", Description: "Moving the booking system off its old database.", Status: project.Active,
			Tags: []string{"database", "booking"}},
			[]demoTalk{
				{"Plan for the cut-over", []string{
					"We have two hours on Sunday night. What is the order of steps for moving the bookings?",
					"Copy while the old system runs, follow its changes, stop writing, copy what is left, compare counts and checksums, then switch. Only the part between stopping and switching needs the two hours, and it should take minutes.",
					"And if the checksums differ?",
					"Then you do not switch: writing goes on at the old place, and you look for the difference on Monday. A plan without a way back is a hope."}},
				{"Why is this query slow?", []string{
					"Finding the bookings of an e-mail address, with lower(email) in the condition, takes two seconds. There is an index on email.",
					"The index is on email, the condition is about lower(email): it cannot be used. Make one on the expression lower(email)."}},
			}},
		{project.Details{}, []demoTalk{
			{"Soup for eight", []string{
				"A lentil soup for eight people, please, without onions.",
				"500 g red lentils, 2 carrots, 2 sticks of celery, 1 tin of tomatoes, 2.5 l stock, cumin, lemon. Soften the vegetables in oil, add cumin, lentils, tomatoes and stock, simmer for 25 minutes, finish with lemon juice."}},
			{"Names for a grey cat", []string{
				"Five names for a grey cat who sleeps on keyboards.",
				"Ash, Pixel, Tabby Key, Slate, and Escape."}},
		}},
	}
}
