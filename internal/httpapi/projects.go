package httpapi

import (
	"encoding/json"
	"time"

	"claude-memory-backend/internal/fault"
	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/project"
)

// projectBody is what a project is made from, and what PUT replaces. Absent fields take their defaults.
type projectBody struct {
	Name         string     `json:"name" minLength:"1" maxLength:"200" example:"Harbour novel"`
	Description  string     `json:"description,omitempty" maxLength:"10000"`
	Instructions string     `json:"instructions,omitempty" maxLength:"100000" doc:"Become part of the system prompt of the project's conversations"`
	Status       string     `json:"status,omitempty" enum:"active,paused,completed,archived" doc:"Default: active"`
	Priority     string     `json:"priority,omitempty" enum:"low,medium,high,critical" doc:"Default: medium"`
	Color        string     `json:"color,omitempty" maxLength:"32" example:"#0a7ea4"`
	Icon         string     `json:"icon,omitempty" maxLength:"64" example:"anchor"`
	Tags         []string   `json:"tags,omitempty" maxItems:"50"`
	Provider     string     `json:"provider,omitempty" doc:"Default provider of its conversations"`
	Model        string     `json:"model,omitempty" maxLength:"200" doc:"Default model of its conversations"`
	Settings     object     `json:"settings,omitempty" doc:"Free-form object of at most 16 KiB"`
	Deadline     *time.Time `json:"deadline,omitempty"`
}

// projectPatch is the same with everything left out that stays as it is; null resets a field to its default.
type projectPatch struct {
	Name         string     `json:"name,omitempty" minLength:"1" maxLength:"200"`
	Description  string     `json:"description,omitempty" maxLength:"10000" nullable:"true"`
	Instructions string     `json:"instructions,omitempty" maxLength:"100000" nullable:"true"`
	Status       string     `json:"status,omitempty" enum:"active,paused,completed,archived" nullable:"true"`
	Priority     string     `json:"priority,omitempty" enum:"low,medium,high,critical" nullable:"true"`
	Color        string     `json:"color,omitempty" maxLength:"32" nullable:"true"`
	Icon         string     `json:"icon,omitempty" maxLength:"64" nullable:"true"`
	Tags         []string   `json:"tags,omitempty" maxItems:"50"`
	Provider     string     `json:"provider,omitempty" nullable:"true"`
	Model        string     `json:"model,omitempty" maxLength:"200" nullable:"true"`
	Settings     object     `json:"settings,omitempty" nullable:"true" doc:"Merged key by key; null removes a key"`
	Deadline     *time.Time `json:"deadline,omitempty" nullable:"true"`
}

func (b projectBody) details() project.Details {
	return project.Details{
		Name: b.Name, Description: b.Description, Instructions: b.Instructions, Status: project.Status(b.Status),
		Priority: project.Priority(b.Priority), Color: b.Color, Icon: b.Icon, Tags: b.Tags, Provider: b.Provider,
		Model: b.Model, Settings: json.RawMessage(b.Settings), Deadline: b.Deadline,
	}
}

func projectBodyOf(d project.Details) projectBody {
	return projectBody{
		Name: d.Name, Description: d.Description, Instructions: d.Instructions, Status: string(d.Status),
		Priority: string(d.Priority), Color: d.Color, Icon: d.Icon, Tags: d.Tags, Provider: d.Provider, Model: d.Model,
		Settings: object(d.Settings), Deadline: d.Deadline,
	}
}

// merged applies a JSON merge patch to a body: what the patch removes is absent then, and takes its default.
func merged[B any](current B, patch []byte) (B, error) {
	var out B
	raw, err := json.Marshal(current)
	if err != nil {
		return out, fault.Wrap("httpapi.merged", err)
	}
	if raw, err = mergeObject(raw, patch); err != nil {
		return out, err
	}
	if err := json.Unmarshal(raw, &out); err != nil {
		return out, fault.New(fault.Invalid, "httpapi.merged", codeInvalid, "the request is not valid").With(err)
	}
	return out, nil
}

type projectAnswer struct {
	ETag string `header:"ETag" doc:"The version, for If-Match"`
	Body projectView
}

type createdProject struct {
	ETag     string `header:"ETag" doc:"The version, for If-Match"`
	Location string `header:"Location"`
	Replayed string `header:"Idempotency-Replayed" doc:"true when this is an earlier answer"`
	Body     projectView
}

func answerProject(p project.Project, err error) (*projectAnswer, error) {
	if err != nil {
		return nil, err
	}
	return &projectAnswer{ETag: etag(p.Version), Body: viewProject(p)}, nil
}

type projectCreate struct {
	Call
	Body projectBody
}

func (s *Server) createProject(x *exchange, in *projectCreate) (*createdProject, error) {
	once, err := x.once()
	if err != nil {
		return nil, err
	}
	ws, err := x.workspace()
	if err != nil {
		return nil, err
	}
	p, err := ws.Projects.Create(x.ctx, x.actor, project.CreateInput{Details: in.Body.details(), Once: once})
	if err != nil {
		return nil, err
	}
	return &createdProject{ETag: etag(p.Version), Location: basePath + "/projects/" + string(p.ID),
		Replayed: replayed(once), Body: viewProject(p)}, nil
}

type projectList struct {
	Call
	Status string `query:"status" enum:"active,paused,completed,archived"`
	Tag    string `query:"tag" maxLength:"64" doc:"Only projects with this tag"`
	Q      string `query:"q" maxLength:"200" doc:"Part of the name, without regard to case"`
	Limit  int    `query:"limit" minimum:"1" maximum:"200" default:"20"`
	Cursor string `query:"cursor" maxLength:"1024" doc:"From next_cursor"`
}

func (s *Server) listProjects(x *exchange, in *projectList) (*paged[projectView], error) {
	ws, err := x.workspace()
	if err != nil {
		return nil, err
	}
	ps, next, err := ws.Projects.List(x.ctx, x.actor, project.Query{Status: project.Status(in.Status), Tag: in.Tag,
		Text: in.Q, Limit: in.Limit, Cursor: in.Cursor})
	if err != nil {
		return nil, err
	}
	return pageOf(ps, next, viewProject), nil
}

type projectFind struct {
	Call
	ProjectPath
}

// ProjectPath names a project in the path.
type ProjectPath struct {
	ID string `path:"id" doc:"Identifier of a project, prj_…" example:"prj_06f4k3z9c8tqv5m2yb7n1x0d4e"`
}

func (s *Server) findProject(x *exchange, in *projectFind) (*projectAnswer, error) {
	id, err := idAt[ident.ProjectID](in.ID)
	if err != nil {
		return nil, err
	}
	return answerProject(at(x, in.ID, func(ws Workspace) (project.Project, error) {
		return ws.Projects.Find(x.ctx, x.actor, id)
	}))
}

// IfMatch guards an edit against a version that is not the current one.
type IfMatch struct {
	IfMatch string `header:"If-Match" doc:"The ETag that was read; another current version answers 412" example:"\"3\""`
}

type projectPut struct {
	Call
	ProjectPath
	IfMatch
	Body projectBody
}

func (s *Server) putProject(x *exchange, in *projectPut) (*projectAnswer, error) {
	return s.editProject(x, in.ID, in.IfMatch.IfMatch, func(d *project.Details) error {
		*d = in.Body.details()
		return nil
	})
}

type projectPatchIn struct {
	Call
	ProjectPath
	IfMatch
	Body projectPatch
}

func (s *Server) patchProject(x *exchange, in *projectPatchIn) (*projectAnswer, error) {
	return s.editProject(x, in.ID, in.IfMatch.IfMatch, func(d *project.Details) error {
		b, err := merged(projectBodyOf(*d), x.body)
		*d = b.details()
		return err
	})
}

func (s *Server) editProject(x *exchange, text, match string, change func(*project.Details) error) (*projectAnswer, error) {
	id, err := idAt[ident.ProjectID](text)
	if err != nil {
		return nil, err
	}
	version, err := ifVersion(match)
	if err != nil {
		return nil, err
	}
	return answerProject(at(x, text, func(ws Workspace) (project.Project, error) {
		return ws.Projects.Edit(x.ctx, x.actor, id, version, change)
	}))
}

type projectDelete struct {
	Call
	ProjectPath
	IfMatch
	Conversations string `query:"conversations" enum:"keep,delete" default:"keep" doc:"What becomes of its conversations: they stay without a project, or go too"`
}

// nothing is an answer without a body.
type nothing struct{}

func (s *Server) deleteProject(x *exchange, in *projectDelete) (*nothing, error) {
	id, err := idAt[ident.ProjectID](in.ID)
	if err != nil {
		return nil, err
	}
	version, err := ifVersion(in.IfMatch.IfMatch)
	if err != nil {
		return nil, err
	}
	return at(x, in.ID, func(ws Workspace) (*nothing, error) {
		return &nothing{}, ws.Projects.Delete(x.ctx, x.actor, id, version, in.Conversations == "delete")
	})
}
