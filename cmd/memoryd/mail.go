package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/mail"
	"claude-memory-backend/internal/member"
	"claude-memory-backend/internal/webhook"
)

// newOutbox builds the way out for mails: a server, or in development a folder.
func newOutbox(s *settings, log *slog.Logger, in *install) (*mail.Outbox, error) {
	c := mail.Config{Store: in.store, Sealer: in.keys, Key: in.lasting.Derive("mails"), Log: log,
		Address: func(ctx context.Context, id ident.AccountID) (string, error) {
			a, _, err := in.store.FindAccount(ctx, id)
			return a.Email, err
		}}
	from := s.text("MAIL_FROM")
	switch {
	case s.text("SMTP_URL") != "":
		out, err := mail.NewSMTP(s.secret("SMTP_URL"), nil)
		if err != nil {
			return nil, err
		}
		c.Transport = out
	case s.production():
		log.Warn("SMTP_URL is not set: nobody is written to")
		return mail.NewOutbox(c), nil
	default:
		c.Transport = mail.NewFolder(s.storage("mails"))
		if from == "" {
			from = "Claude Memory <memory@localhost>"
		}
	}
	var err error
	c.From, err = mail.ParseFrom(from)
	return mail.NewOutbox(c), err
}

// invitations writes to those who are invited to a project. An address gets one mail a week, whoever invites it to whatever:
// registering accepts all that there are.
func invitations(s *settings, outbox *mail.Outbox) member.Notice {
	site := ""
	if origins := s.list("ALLOWED_ORIGINS"); len(origins) > 0 && (!s.production() || s.values["ALLOWED_ORIGINS"].source != "default") {
		site = origins[0]
	}
	return func(inviter ident.Actor, m member.Member) (*mail.Entry, error) {
		return outbox.Seal("member.invited "+strings.ToLower(m.Email), mail.Invited(mail.Invitation{To: m.Email, By: inviter.Account,
			Inviter: inviter.Name, Role: string(m.Role), Site: site, Open: s.text("REGISTRATION") == "open"}))
	}
}

// pauses tells owners of webhooks that nothing is sent to one any more; once, however often it is asked to.
func pauses(outbox *mail.Outbox) func(context.Context, ident.AccountID, webhook.Endpoint) error {
	resume := "To have it sent again, make the webhook active: PATCH /api/v1/webhooks/ID with {\"state\": \"active\"}."
	return func(ctx context.Context, owner ident.AccountID, e webhook.Endpoint) error {
		p := mail.Pause{Owner: owner, Endpoint: e.Name, Since: e.UpdatedAt, Resume: strings.Replace(resume, "ID", string(e.ID), 1)}
		if e.FailingSince != nil {
			p.Since = *e.FailingSince
		}
		switch e.Reason {
		case webhook.Gone:
			p.Why = "Its last answer was 410, which says that it is gone for good."
		case webhook.SecretLost:
			p.Why = "Its secret cannot be read any more: give it a new one first."
		}
		return outbox.Enqueue(ctx, fmt.Sprint("webhook.paused ", e.ID, " ", e.Version), mail.EndpointPaused(p))
	}
}
