package ident

import (
	"encoding/base32"
	"strings"
	"time"

	"github.com/google/uuid"

	"claude-memory-backend/internal/fault"
)

// The kinds of identifier. The text form is what the API shows and what databases store.
type (
	AccountID      string // usr_
	SessionID      string // ses_
	TenantID       string // ten_
	ProjectID      string // prj_
	ConversationID string // conv_
	MessageID      string // msg_
	TurnID         string // turn_
	EventID        string // evt_
	EntryID        string // aud_
	DatabaseID     string // db_
	JobID          string // job_
	InvitationID   string // inv_
	WebhookID      string // whk_
	DeliveryID     string // dlv_
)

// prefixed is every identifier type; Prefix is part of the grammar.
type prefixed interface {
	~string
	Prefix() string
}

// Prefix returns the type prefix with its underscore.
func (AccountID) Prefix() string      { return "usr_" }
func (SessionID) Prefix() string      { return "ses_" }
func (TenantID) Prefix() string       { return "ten_" }
func (ProjectID) Prefix() string      { return "prj_" }
func (ConversationID) Prefix() string { return "conv_" }
func (MessageID) Prefix() string      { return "msg_" }
func (TurnID) Prefix() string         { return "turn_" }
func (EventID) Prefix() string        { return "evt_" }
func (EntryID) Prefix() string        { return "aud_" }
func (DatabaseID) Prefix() string     { return "db_" }
func (JobID) Prefix() string          { return "job_" }
func (InvitationID) Prefix() string   { return "inv_" }
func (WebhookID) Prefix() string      { return "whk_" }
func (DeliveryID) Prefix() string     { return "dlv_" }

// bodyLen is the length of 128 bits in base32 without padding.
const bodyLen = 26

var crockford = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

// New makes an identifier for this moment. Within one process later calls sort after earlier ones.
func New[T prefixed]() T {
	var zero T
	u := uuid.Must(uuid.NewV7())
	return T(zero.Prefix() + crockford.EncodeToString(u[:]))
}

// Parse checks the grammar of text. A malformed identifier is NotFound, like one that never was.
func Parse[T prefixed](text string) (T, error) {
	var zero T
	body, ok := strings.CutPrefix(text, zero.Prefix())
	if !ok || len(body) != bodyLen {
		return zero, fault.Missing("ident.Parse")
	}
	raw, err := crockford.DecodeString(body)
	// Re-encoding rejects spellings whose unused low bits are set: one identifier has one spelling.
	if err != nil || crockford.EncodeToString(raw) != body {
		return zero, fault.Missing("ident.Parse")
	}
	return T(text), nil
}

// Micros is how times are stored in every database: microseconds since 1970 in UTC.
func Micros(t time.Time) int64 { return t.UnixMicro() }

// Time reads what Micros wrote.
func Time(micros int64) time.Time { return time.UnixMicro(micros).UTC() }
