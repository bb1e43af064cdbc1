package main

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/joho/godotenv"

	"claude-memory-backend/internal/blob"
	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/mail"
	"claude-memory-backend/internal/natsbus"
	"claude-memory-backend/internal/seal"
	"claude-memory-backend/internal/sqlstore"
)

// dotEnv is read from the working folder, if it is there; the environment wins over it.
const dotEnv = ".env"

// settings is every variable with its value and where it came from, in the order of the table.
type settings struct {
	names  []string
	values map[string]value
	made   map[string]seal.Secret // secrets generated in development
}

type value struct {
	text   string
	source string // environment, file, .env, default, generated
	secret bool
	about  string
}

// variable declares one setting.
type variable struct {
	name     string
	fallback string
	secret   bool
	check    func(string) error // called for non-empty values
	about    string
}

var (
	onOff   = words("on", "off")
	anyText = func(string) error { return nil }
)

// variables lists every setting: those of the founding document under their names, and ours.
func variables() []variable {
	return []variable{
		{"NODE_ENV", "development", false, words("development", "production", "test"), "environment"},
		{"HOST", "", false, anyText, "address to listen on; empty: loopback in development, all addresses in production"},
		{"PORT", "3001", false, number(0, 65535), "port to listen on; 0 takes a free one"},
		{"PUBLIC_URL", "", false, publicURL, "where others reach this server, such as https://memory.example.org; empty: in development, where it listens"},
		{"ALLOWED_ORIGINS", "http://localhost:3000", false, each(origin), "browser origins that may call the API"},
		{"TRUSTED_PROXIES", "", false, each(network), "proxies whose X-Forwarded-For is believed"},
		{"WS_QUERY_TOKEN", "", false, onOff, "whether /ws takes access tokens in its address; empty: on in development, off elsewhere"},
		{"RATE_LIMIT", "on", false, onOff, "request limits; off for load tests only"},
		{"REGISTRATION", "open", false, words("open", "invite", "closed"), "who may register"},
		{"JWT_SECRET", "", true, strongSecret, "signs access tokens; 32 characters or more"},
		{"JWT_SECRET_PREVIOUS", "", true, strongSecret, "the signing secret before the current one, while rotating"},
		{"MASTER_KEY", "", true, strongSecret, "wraps the tenants' keys; losing it loses their data"},
		{"MASTER_KEY_PREVIOUS", "", true, strongSecret, "the master key before the current one, while rotating"},
		{"METRICS_TOKEN", "", true, minLength(16), "opens metrics and detailed health in production"},
		{"STORAGE_PATH", "./storage", false, anyText, "folder for databases, files and generated keys"},
		{"MASTER_DATABASE_URL", "", true, postgresURL, "master database; empty: SQLite under STORAGE_PATH"},
		{"TENANT_DATABASE_URLS", "", true, each(postgresURL), "PostgreSQL servers for tenants; empty: SQLite files"},
		{"NATS_URL", "", true, natsURL, "NATS, over which several servers hear one another at once; empty: each looks every two seconds"},
		{"OUTBOUND_ALLOW", "", false, each(network), "networks, besides public ones, that addresses given by users may reach"},
		{"BACKUP_URL", "", true, storageAddress, "where backups lie: a folder, or s3://KEY:SECRET@HOST/BUCKET"},
		{"TENANT_MAX_BYTES", "", false, number(0, 1<<50), "bytes of text that an account may keep; 0 or empty: no limit"},
		{"TENANT_MAX_MESSAGES", "", false, number(0, 1_000_000_000_000), "messages that an account may keep; 0 or empty: no limit"},
		{"TENANT_MAX_WEBHOOKS", "50", false, number(1, 200), "webhooks that an account may have"},
		{"WEBHOOK_TIMEOUT", "15", false, number(1, 30), "seconds that one attempt at a webhook delivery may take"},
		{"WEBHOOK_KEEP_DAYS", "30", false, number(1, 3650), "days that finished deliveries and their attempts are kept"},
		{"SQLITE_SYNCHRONOUS", "FULL", false, words("FULL", "EXTRA", "NORMAL"), "durability of SQLite commits; NORMAL may lose the last ones in a power cut"},
		{"MAX_OPEN_TENANTS", "", false, number(1, 1_000_000), "tenant databases open at once; empty: by the limits of descriptors and memory"},
		{"SMTP_URL", "", true, smtpURL, "server that takes mails: smtp://user:password@host:587, or smtps://; empty: a folder in development, none elsewhere"},
		{"MAIL_FROM", "", false, mailFrom, "sender of mails, as in Claude Memory <memory@example.com>; required with SMTP_URL"},
		{"SPOOL_MB", "256", false, number(1, 1_000_000), "megabytes that answers may take under STORAGE_PATH while their tenants' databases are away"},
		{"SPOOL_TENANT_MB", "32", false, number(1, 1_000_000), "of one tenant"},
		{"SPOOL_TURN_MB", "8", false, number(1, 1_000_000), "of one answer"},
		{"AI_PROVIDER", "", false, words("anthropic", "n8n", "scripted"), "who answers by default; empty: what is configured"},
		{"ANTHROPIC_API_KEY", "", true, anyText, "key for the Anthropic API"},
		{"ANTHROPIC_BASE_URL", "", false, httpURL, "another server that speaks the Anthropic API"},
		{"CLAUDE_MODEL", "claude-sonnet-5-5", false, anyText, "model for conversations that name none"},
		{"N8N_WEBHOOK_URL", "", true, httpURL, "webhook of the n8n workflow that asks Claude"},
		{"N8N_API_KEY", "", true, anyText, "header secret that the n8n webhook expects"},
		{"N8N_SIGNING_SECRET", "", true, minLength(24), "signs calls to n8n and answers that it delivers later; empty: N8N_API_KEY does"},
		{"N8N_SIGNING_SECRET_PREVIOUS", "", true, anyText, "the one before, while rotating: signs and is accepted, too"},
		{"N8N_TIMEOUT", "300", false, number(1, 3_600), "seconds that a call of n8n may take, to the end of its answer"},
		{"N8N_CALLBACK_TIMEOUT", "900", false, number(1, 86_400), "seconds that a turn may take when its workflow answers later; needs PUBLIC_URL"},
		{"PRICES_FILE", "", false, readable, "model prices instead of the built-in ones (JSON)"},
		{"TITLE_MODEL", "", false, anyText, "model that names conversations; empty: their first words do"},
		{"CONTEXT_TOKENS", "100000", false, number(1000, 10_000_000), "tokens of history that a prompt may hold"},
		{"CONTEXT_MESSAGES", "400", false, number(2, 100_000), "messages of history that a prompt may hold"},
		{"LOG_LEVEL", "info", false, words("debug", "info", "warn", "error"), "what is logged"},
		{"LOG_FORMAT", "", false, words("text", "json"), "empty: text in development, JSON in production"},
		{"LOG_FILE", "", false, anyText, "rotated log file; empty: none in development, logs/memoryd.log under STORAGE_PATH in production; off: none"},
		{"SHUTDOWN_TIMEOUT", "25", false, number(1, 600), "seconds that running answers get to end when the server stops"},
	}
}

// loadSettings reads the environment, NAME_FILE files and .env, and checks everything: the error names every mistake.
func loadSettings(environ []string, dotenv string) (*settings, error) {
	env := make(map[string]string)
	for _, kv := range environ {
		if k, v, ok := strings.Cut(kv, "="); ok {
			env[k] = v
		}
	}
	file := map[string]string{}
	if raw, err := os.ReadFile(dotenv); err == nil {
		if file, err = godotenv.UnmarshalBytes(raw); err != nil {
			return nil, usageError{fmt.Errorf("%s cannot be read: is every line NAME=value?", dotenv)}
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, usageError{fmt.Errorf("%s cannot be read", dotenv)}
	}
	s := &settings{values: make(map[string]value), made: make(map[string]seal.Secret)}
	var wrong []error
	for _, v := range variables() {
		got, err := v.read(env, file)
		if err == nil && got.text != "" {
			err = v.check(got.text)
		}
		if err != nil {
			wrong = append(wrong, fmt.Errorf("%s %w", v.name, err))
		}
		s.names = append(s.names, v.name)
		s.values[v.name] = got
	}
	wrong = append(wrong, s.checkTogether()...)
	if len(wrong) > 0 {
		return s, usageError{fmt.Errorf("the configuration is wrong:\n  %w", joinLines(wrong))}
	}
	return s, nil
}

func (v variable) read(env, file map[string]string) (value, error) {
	out := value{text: v.fallback, source: "default", secret: v.secret, about: v.about}
	direct, inEnv := env[v.name]
	path, inFile := env[v.name+"_FILE"]
	if !v.secret {
		inFile = false
	}
	switch {
	case inEnv && direct != "" && inFile && path != "":
		return out, fmt.Errorf("and %s_FILE are both set: choose one", v.name)
	case inFile && path != "":
		raw, err := os.ReadFile(path)
		if err != nil {
			return out, fmt.Errorf("cannot be read from the file that %s_FILE names", v.name)
		}
		out.text, out.source = strings.TrimRight(string(raw), "\r\n"), "file"
	case inEnv && direct != "":
		out.text, out.source = direct, "environment"
	case file[v.name] != "":
		out.text, out.source = file[v.name], dotEnv
	}
	return out, nil
}

// checkTogether finds contradictions between settings that are right by themselves.
func (s *settings) checkTogether() (wrong []error) {
	need := func(name, why string) {
		if s.text(name) == "" {
			wrong = append(wrong, fmt.Errorf("%s is required %s", name, why))
		}
	}
	if s.production() {
		need("JWT_SECRET", "in production: openssl rand -base64 48")
		need("MASTER_KEY", "in production: openssl rand -base64 32")
		if s.text("AI_PROVIDER") == "scripted" {
			wrong = append(wrong, errors.New("AI_PROVIDER scripted is for development only"))
		}
		if v := s.text("JWT_SECRET"); v != "" && v == s.text("MASTER_KEY") {
			wrong = append(wrong, errors.New("MASTER_KEY must differ from JWT_SECRET"))
		}
	}
	if s.text("SMTP_URL") != "" {
		need("MAIL_FROM", "when SMTP_URL is set")
	}
	switch s.text("AI_PROVIDER") {
	case "anthropic":
		need("ANTHROPIC_API_KEY", "when AI_PROVIDER is anthropic")
	case "n8n":
		need("N8N_WEBHOOK_URL", "when AI_PROVIDER is n8n")
	}
	return wrong
}

func (s *settings) text(name string) string { return s.values[name].text }

func (s *settings) secret(name string) seal.Secret {
	if made, ok := s.made[name]; ok {
		return made
	}
	return seal.Secret(s.text(name))
}

func (s *settings) production() bool { return s.text("NODE_ENV") == "production" }

func (s *settings) on(name string) bool { return s.text(name) == "on" }

// queryToken says whether a WebSocket may have its access token in the address.
func (s *settings) queryToken() bool {
	if s.text("WS_QUERY_TOKEN") == "" {
		return s.text("NODE_ENV") == "development"
	}
	return s.on("WS_QUERY_TOKEN")
}

// number is for settings that number() checked.
func (s *settings) number(name string) int {
	n, _ := strconv.Atoi(s.text(name))
	return n
}

func (s *settings) list(name string) []string { return splitList(s.text(name)) }

func (s *settings) host() string {
	switch h := s.text("HOST"); {
	case h != "":
		return h
	case s.production():
		return ""
	default:
		return "127.0.0.1"
	}
}

// listeners are the addresses that a server with these settings listens on, as far as they can be told beforehand.
func (s *settings) listeners() []netip.AddrPort {
	port := s.number("PORT")
	if port == 0 {
		return nil
	}
	addr := netip.IPv6Unspecified()
	if h := s.host(); h != "" {
		var err error
		if addr, err = netip.ParseAddr(h); err != nil {
			addr = netip.IPv6Unspecified() // a name: whatever it stands for is this machine
		}
	}
	return []netip.AddrPort{netip.AddrPortFrom(addr, uint16(port))}
}

func (s *settings) storage(parts ...string) string {
	return filepath.Join(append([]string{s.text("STORAGE_PATH")}, parts...)...)
}

// networks is for settings that each(network) checked.
func (s *settings) networks(name string) (out []netip.Prefix) {
	for _, p := range s.list(name) {
		if n, err := parseNetwork(p); err == nil {
			out = append(out, n)
		}
	}
	return out
}

func splitList(text string) (out []string) {
	for part := range strings.SplitSeq(text, ",") {
		if part = strings.TrimSpace(part); part != "" {
			out = append(out, part)
		}
	}
	return out
}

func joinLines(errs []error) error {
	lines := make([]string, len(errs))
	for i, e := range errs {
		lines[i] = e.Error()
	}
	return errors.New(strings.Join(lines, "\n  "))
}

// The checks say what is wrong without repeating the value, which may be a secret.

func words(allowed ...string) func(string) error {
	return func(v string) error {
		if !slices.Contains(allowed, v) {
			return fmt.Errorf("must be one of %s", strings.Join(allowed, ", "))
		}
		return nil
	}
}

func number(low, high int) func(string) error {
	return func(v string) error {
		if n, err := strconv.Atoi(v); err != nil || n < low || n > high {
			return fmt.Errorf("must be a whole number from %d to %d", low, high)
		}
		return nil
	}
}

func minLength(n int) func(string) error {
	return func(v string) error {
		if len(v) < n {
			return fmt.Errorf("must have at least %d characters", n)
		}
		return nil
	}
}

func each(check func(string) error) func(string) error {
	return func(v string) error {
		for _, part := range splitList(v) {
			if err := check(part); err != nil {
				return err
			}
		}
		return nil
	}
}

func origin(v string) error {
	u, err := url.Parse(v)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.Path != "" || u.RawQuery != "" || u.User != nil {
		return errors.New("must list origins like https://app.example.com, without a path")
	}
	return nil
}

func parseNetwork(v string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(v); err == nil {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	return netip.ParsePrefix(v)
}

func network(v string) error {
	if _, err := parseNetwork(v); err != nil {
		return errors.New("must list addresses or networks like 10.0.0.0/8")
	}
	return nil
}

func httpURL(v string) error {
	u, err := url.Parse(v)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return errors.New("must be an http or https address")
	}
	return nil
}

func publicURL(v string) error {
	u, err := url.Parse(v)
	if err != nil || httpURL(v) != nil || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return errors.New("must be an http or https address without anything after the path")
	}
	return nil
}

func postgresURL(v string) error {
	u, err := url.Parse(v)
	if err != nil || (u.Scheme != "postgres" && u.Scheme != "postgresql") || strings.Trim(u.Path, "/") == "" ||
		sqlstore.CheckURL(seal.Secret(v)) != nil {
		return errors.New("must be an address like postgres://user:password@host:5432/name")
	}
	return nil
}

func natsURL(v string) error {
	if natsbus.Check(v) != nil {
		return errors.New("must list addresses like nats://user:password@host:4222, or tls://")
	}
	return nil
}

func storageAddress(v string) error {
	if blob.Check(v) != nil {
		return errors.New("must be a folder, or an address like s3://KEY:SECRET@HOST/BUCKET?region=REGION")
	}
	return nil
}

// smtpURL says itself what is wrong, without repeating what it was given.
func smtpURL(v string) error {
	return said(mail.Check(v))
}

func mailFrom(v string) error {
	_, err := mail.ParseFrom(v)
	return said(err)
}

// said is an error's message alone.
func said(err error) error {
	if f, ok := errors.AsType[*fault.Error](err); ok {
		return errors.New(f.Message)
	}
	return err
}

func readable(v string) error {
	f, err := os.Open(v)
	if err != nil {
		return errors.New("names a file that cannot be read")
	}
	return f.Close()
}

// strongSecret refuses what can be guessed: short, repetitive, or a placeholder from somebody's documentation.
func strongSecret(v string) error {
	if len(v) < 32 {
		return errors.New("must have at least 32 characters: openssl rand -base64 48")
	}
	seen := map[rune]bool{}
	for _, r := range v {
		seen[r] = true
	}
	if len(seen) < 12 {
		return errors.New("repeats a few characters: openssl rand -base64 48")
	}
	low := strings.ToLower(v)
	for _, hint := range []string{"secret", "change", "password", "example", "your-", "your_", "replace", "jwt", "0123456789", "abcdefghij"} {
		if strings.Contains(low, hint) {
			if _, err := base64.StdEncoding.DecodeString(v); err != nil || strings.Contains(low, "secret") || strings.Contains(low, "change") {
				return errors.New("looks like a placeholder: openssl rand -base64 48")
			}
		}
	}
	return nil
}
