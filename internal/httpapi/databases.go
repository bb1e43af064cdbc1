package httpapi

import (
	"encoding/json"
	"time"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/relocate"
	"claude-memory-backend/internal/seal"
	"claude-memory-backend/internal/sqlstore"
	"claude-memory-backend/internal/tenant"
)

// databaseView is one configuration as its owner sees it. It never holds a password, and of a hosted database it does
// not tell where that is.
type databaseView struct {
	ID            string     `json:"id" example:"db_06f4k3z9c8tqv5m2yb7n1x0d4e"`
	Name          string     `json:"name"`
	Kind          string     `json:"kind" enum:"hosted_sqlite,hosted_postgres,external_postgres"`
	Active        bool       `json:"active" doc:"The account's data lives here"`
	State         string     `json:"state" enum:"ready,active,filling,original,released,empty" doc:"ready: registered, nothing of the account is in it. filling: a job is copying into it. original: what the data was moved away from, kept read-only until it is released. released: let go of, the server has no credentials. empty: a hosted place without data"`
	Host          *string    `json:"host" doc:"null for a hosted database"`
	Port          *int       `json:"port"`
	Database      *string    `json:"database"`
	Username      *string    `json:"username"`
	TLS           *string    `json:"tls" doc:"verify-full or disable; null for a hosted database"`
	SchemaVersion *int64     `json:"schema_version" doc:"Of the tables there, as last seen"`
	SizeBytes     *int64     `json:"size_bytes" doc:"What they take, as last seen"`
	Problem       *string    `json:"problem" doc:"Code of what was wrong when it was last looked at"`
	CheckedAt     *time.Time `json:"checked_at"`
	Version       int64      `json:"version" doc:"Counts edits; the ETag"`
	CreatedAt     time.Time  `json:"created_at"`
	UpdatedAt     time.Time  `json:"updated_at"`
}

func viewDatabase(d tenant.Database) databaseView {
	v := databaseView{ID: string(d.ID()), Name: d.Name, Kind: relocate.KindName(d.Placement.Kind), Active: d.State == tenant.InUse,
		State: string(d.State), SchemaVersion: orNone(d.Facts.SchemaVersion), SizeBytes: orNone(d.Facts.SizeBytes),
		Problem: orNull(d.Facts.Problem), CheckedAt: utc(d.Facts.CheckedAt), Version: d.Version, CreatedAt: d.CreatedAt.UTC(),
		UpdatedAt: d.UpdatedAt.UTC()}
	if a := d.Placement.Address; d.Placement.Kind == tenant.External {
		port := int(a.Port)
		v.Host, v.Port, v.Database, v.Username, v.TLS = &a.Host, &port, &a.Database, &a.Username, orNull(string(a.TLS))
	}
	return v
}

func orNone(n int64) *int64 {
	if n == 0 {
		return nil
	}
	return &n
}

// Where is the address of a database: a postgres:// address, or separate fields.
type Where struct {
	URL      string `json:"url,omitempty" maxLength:"4096" writeOnly:"true" doc:"postgres://user:password@host:5432/name; one host, no parameter but sslmode (verify-full, which is the default, or disable)" example:"postgres://ada:secret@db.example.org/ada"`
	Kind     string `json:"kind,omitempty" enum:"postgres"`
	Host     string `json:"host,omitempty" maxLength:"255" example:"db.example.org"`
	Port     int    `json:"port,omitempty" minimum:"1" maximum:"65535" doc:"Default: 5432"`
	Database string `json:"database,omitempty" maxLength:"255"`
	Username string `json:"username,omitempty" maxLength:"255"`
	Password string `json:"password,omitempty" maxLength:"1024" writeOnly:"true" doc:"Kept sealed, shown to nobody"`
	TLS      string `json:"tls,omitempty" enum:"verify-full,require,disable" doc:"Default: verify-full; require means the same. disable is for addresses that the operator allows only"`
}

// address reads whichever form was given; nothing of it is judged yet.
func (w Where) address(op string) (tenant.Address, seal.Secret, error) {
	separate := w.Host != "" || w.Port != 0 || w.Database != "" || w.Username != "" || w.Password != "" || w.TLS != ""
	switch {
	case w.URL != "" && separate:
		return tenant.Address{}, "", fault.BadInput(op, "body.url", "give either an address or separate fields, not both")
	case w.URL != "":
		return tenant.ParseAddress(seal.Secret(w.URL))
	case !separate:
		return tenant.Address{}, "", fault.BadInput(op, "body.url", "give an address, or host, database and username")
	}
	a := tenant.Address{Host: w.Host, Port: uint16(w.Port), Database: w.Database, Username: w.Username, TLS: tlsMode(w.TLS)}
	if w.Port == 0 {
		a.Port = 5432
	}
	return a, seal.Secret(w.Password), nil
}

func tlsMode(s string) tenant.TLSMode {
	if s == "" || s == "require" {
		return tenant.TLSVerifyFull
	}
	return tenant.TLSMode(s)
}

// DatabasePath names a configuration in the path.
type DatabasePath struct {
	ID string `path:"id" doc:"Identifier of a database, db_…" example:"db_06f4k3z9c8tqv5m2yb7n1x0d4e"`
}

func (p DatabasePath) parse() (ident.DatabaseID, error) {
	id, err := ident.Parse[ident.DatabaseID](p.ID)
	if err != nil {
		return id, fault.Missing("httpapi.database")
	}
	return id, nil
}

type databaseAnswer struct {
	ETag string `header:"ETag" doc:"The version, for If-Match"`
	Body databaseView
}

func answerDatabase(d tenant.Database, err error) (*databaseAnswer, error) {
	if err != nil {
		return nil, err
	}
	return &databaseAnswer{ETag: etag(d.Version), Body: viewDatabase(d)}, nil
}

type databaseList struct {
	Call
	Limit  int    `query:"limit" minimum:"1" maximum:"200" default:"20"`
	Cursor string `query:"cursor" maxLength:"1024" doc:"From next_cursor"`
}

func (s *Server) listDatabases(x *exchange, in *databaseList) (*paged[databaseView], error) {
	list, next, err := s.deps.Databases.ListDatabases(x.ctx, x.actor, x.tenant, in.Cursor, in.Limit)
	if err != nil {
		return nil, err
	}
	return pageOf(list, next, viewDatabase), nil
}

type databaseCreate struct {
	Call
	Body struct {
		Name string `json:"name" minLength:"1" maxLength:"100" example:"My own server"`
		Where
	} `nameHint:"NewDatabase"`
}

type createdDatabase struct {
	ETag     string `header:"ETag" doc:"The version, for If-Match"`
	Location string `header:"Location"`
	Replayed string `header:"Idempotency-Replayed" doc:"true when this is an earlier answer"`
	Body     databaseView
}

func (s *Server) createDatabase(x *exchange, in *databaseCreate) (*createdDatabase, error) {
	once, err := x.once()
	if err != nil {
		return nil, err
	}
	a, password, err := in.Body.address("httpapi.createDatabase")
	if err != nil {
		return nil, err
	}
	d, err := s.deps.Databases.Register(x.ctx, x.actor, x.tenant,
		relocate.NewDatabase{Name: in.Body.Name, Address: a, Password: password, Once: once})
	if err != nil {
		return nil, err
	}
	return &createdDatabase{ETag: etag(d.Version), Location: basePath + "/database/" + string(d.ID()), Replayed: replayed(once),
		Body: viewDatabase(d)}, nil
}

type databaseFind struct {
	Call
	DatabasePath
}

func (s *Server) findDatabase(x *exchange, in *databaseFind) (*databaseAnswer, error) {
	id, err := in.parse()
	if err != nil {
		return nil, err
	}
	return answerDatabase(s.deps.Databases.Database(x.ctx, x.actor, x.tenant, id))
}

// databasePatch is what may be edited; what is left out stays.
type databasePatch struct {
	Name     string `json:"name,omitempty" minLength:"1" maxLength:"100"`
	URL      string `json:"url,omitempty" maxLength:"4096" writeOnly:"true" doc:"Instead of the separate fields; without a password the present one stays"`
	Host     string `json:"host,omitempty" maxLength:"255"`
	Port     int    `json:"port,omitempty" minimum:"1" maximum:"65535" nullable:"true"`
	Database string `json:"database,omitempty" maxLength:"255"`
	Username string `json:"username,omitempty" maxLength:"255"`
	Password string `json:"password,omitempty" maxLength:"1024" nullable:"true" writeOnly:"true" doc:"Needed again with another host or port, or without TLS; null: none"`
	TLS      string `json:"tls,omitempty" enum:"verify-full,require,disable" nullable:"true"`
}

type databasePatchIn struct {
	Call
	DatabasePath
	IfMatch
	Body databasePatch
}

func (s *Server) patchDatabase(x *exchange, in *databasePatchIn) (*databaseAnswer, error) {
	id, err := in.parse()
	if err != nil {
		return nil, err
	}
	version, err := ifVersion(in.IfMatch.IfMatch)
	if err != nil {
		return nil, err
	}
	return answerDatabase(s.deps.Databases.EditDatabase(x.ctx, x.actor, x.tenant, id, version,
		func(d *relocate.DatabaseEdit) error { return editDatabase(d, x.body) }))
}

// editDatabase merges a patch into what may be edited.
func editDatabase(d *relocate.DatabaseEdit, patch []byte) error {
	const op = "httpapi.patchDatabase"
	var given map[string]json.RawMessage
	if err := json.Unmarshal(patch, &given); err != nil {
		return fault.Wrap(op, err)
	}
	now := databasePatch{Name: d.Name, Host: d.Address.Host, Port: int(d.Address.Port), Database: d.Address.Database,
		Username: d.Address.Username, TLS: string(d.Address.TLS)}
	b, err := merged(now, patch)
	if err != nil {
		return err
	}
	d.Name = b.Name
	separate := false
	for _, name := range []string{"host", "port", "database", "username", "tls"} {
		_, has := given[name]
		separate = separate || has
	}
	_, secret := given["password"]
	if b.URL != "" {
		if separate || secret {
			return fault.BadInput(op, "body.url", "give either an address or separate fields, not both")
		}
		a, password, err := tenant.ParseAddress(seal.Secret(b.URL))
		if d.Address = a; password != "" {
			d.Password = &password
		}
		return err
	}
	if separate {
		if d.Address, _, err = (Where{Host: b.Host, Port: b.Port, Database: b.Database, Username: b.Username, TLS: b.TLS}).address(op); err != nil {
			return err
		}
	}
	if secret {
		password := seal.Secret(b.Password)
		d.Password = &password
	}
	return nil
}

type databaseDelete struct {
	Call
	DatabasePath
	IfMatch
}

func (s *Server) deleteDatabase(x *exchange, in *databaseDelete) (*nothing, error) {
	id, err := in.parse()
	if err != nil {
		return nil, err
	}
	version, err := ifVersion(in.IfMatch.IfMatch)
	if err != nil {
		return nil, err
	}
	return &nothing{}, s.deps.Databases.Remove(x.ctx, x.actor, x.tenant, id, version)
}

type databaseTest struct {
	Call
	Body struct {
		ID   string `json:"id,omitempty" maxLength:"64" doc:"Of a configuration, instead of an address" example:"db_06f4k3z9c8tqv5m2yb7n1x0d4e"`
		Name string `json:"name,omitempty" maxLength:"100"`
		Where
	} `nameHint:"DatabaseTest"`
}

// testReportView is what a test found.
type testReportView struct {
	OK            bool           `json:"ok" doc:"The database can be used: there is no problem of level error"`
	Reachable     bool           `json:"reachable" doc:"The server answered, whether or not it accepted the login"`
	LatencyMS     float64        `json:"latency_ms" doc:"Of one round trip"`
	ServerVersion *string        `json:"server_version" example:"17.2"`
	TLS           tlsView        `json:"tls"`
	Privileges    privilegesView `json:"privileges"`
	Schema        string         `json:"schema" enum:"none,ours,newer,damaged" doc:"What is there under the name of our schema"`
	SchemaVersion int64          `json:"schema_version" doc:"Of our tables there; 0 without"`
	Problems      []findingView  `json:"problems" nullable:"false"`
}

// tlsView is how the connection was protected.
type tlsView struct {
	Encrypted bool    `json:"encrypted"`
	Version   *string `json:"version" example:"1.3"`
	Verified  bool    `json:"verified" doc:"The certificate is valid and names the host"`
}

// privilegesView is what the login may do.
type privilegesView struct {
	Superuser    bool `json:"superuser"`
	CreateRole   bool `json:"create_role"`
	BypassRLS    bool `json:"bypass_rls"`
	CreateSchema bool `json:"create_schema" doc:"In this database"`
	UseSchema    bool `json:"use_schema" doc:"Our schema is there, and may be used and filled"`
}

// findingView is one thing that a test found.
type findingView struct {
	Level   string `json:"level" enum:"error,warning" doc:"error: the database cannot be used like this"`
	Code    string `json:"code" example:"superuser_login"`
	Message string `json:"message" doc:"What it is, and what to do about it"`
}

func viewReport(r sqlstore.Report) testReportView {
	v := testReportView{OK: r.OK, Reachable: r.Reachable, LatencyMS: float64(r.Latency.Microseconds()) / 1000, ServerVersion: orNull(r.ServerVersion),
		TLS:        tlsView{Encrypted: r.TLS.Version != "", Version: orNull(r.TLS.Version), Verified: r.TLS.Verified},
		Privileges: privilegesView(r.Privileges), Schema: string(r.Schema), SchemaVersion: r.SchemaVersion, Problems: []findingView{}}
	for _, p := range r.Problems {
		v.Problems = append(v.Problems, findingView(p))
	}
	return v
}

type reportAnswer struct{ Body testReportView }

func (s *Server) testDatabase(x *exchange, in *databaseTest) (*reportAnswer, error) {
	const op = "httpapi.testDatabase"
	r, err := func() (sqlstore.Report, error) {
		if in.Body.ID == "" {
			a, password, err := in.Body.address(op)
			if err != nil {
				return sqlstore.Report{}, err
			}
			return s.deps.Databases.Test(x.ctx, x.actor, x.tenant, a, password)
		}
		if in.Body.Where != (Where{}) {
			return sqlstore.Report{}, fault.BadInput(op, "body.id", "give either an id or an address, not both")
		}
		id, err := DatabasePath{ID: in.Body.ID}.parse()
		if err != nil {
			return sqlstore.Report{}, err
		}
		return s.deps.Databases.TestDatabase(x.ctx, x.actor, x.tenant, id)
	}()
	if err != nil {
		return nil, err
	}
	return &reportAnswer{viewReport(r)}, nil
}

type startedJob struct {
	Location string `header:"Location" doc:"The job"`
	Replayed string `header:"Idempotency-Replayed" doc:"true when this is an earlier answer"`
	Body     jobView
}

func (s *Server) activateDatabase(x *exchange, in *databaseFind) (*startedJob, error) {
	id, err := in.parse()
	if err != nil {
		return nil, err
	}
	once, err := x.once()
	if err != nil {
		return nil, err
	}
	j, err := s.deps.Databases.Activate(x.ctx, x.actor, x.tenant, id, once)
	if err != nil {
		return nil, err
	}
	return &startedJob{Location: basePath + "/jobs/" + string(j.ID), Replayed: replayed(once), Body: viewJob(j)}, nil
}

func (s *Server) releaseDatabase(x *exchange, in *databaseFind) (*databaseAnswer, error) {
	id, err := in.parse()
	if err != nil {
		return nil, err
	}
	return answerDatabase(s.deps.Databases.Release(x.ctx, x.actor, x.tenant, id))
}
