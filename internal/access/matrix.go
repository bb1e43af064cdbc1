package access

// Role is what an account is in a project.
type Role string

// The roles, strongest first.
const (
	Owner     Role = "owner"
	Editor    Role = "editor"
	Commenter Role = "commenter"
	Viewer    Role = "viewer"
)

// Roles lists them, strongest first.
func Roles() []Role { return []Role{Owner, Editor, Commenter, Viewer} }

// Given are the roles that an owner may give to somebody else.
func Given() []Role { return []Role{Editor, Commenter, Viewer} }

// Action is something that may be done in a tenant, or in one project of it.
type Action string

// The actions.
const (
	ReadProject        Action = "read a project"                // with its members
	EditProject        Action = "edit a project"                //
	CreateProject      Action = "make projects"                 //
	ListProjects       Action = "list the projects of a tenant" //
	DeleteProject      Action = "delete a project"              //
	ManageMembers      Action = "manage the members"            // and see who is invited
	ReadConversation   Action = "read conversations"            // with messages and turns; listing and searching them
	TakePart           Action = "take part in conversations"    // send, retry, continue, stop, be seen typing
	CreateConversation Action = "start conversations"           //
	EditConversation   Action = "edit conversations"            //
	DeleteConversation Action = "delete conversations"          //
	MoveConversation   Action = "move conversations"            // into another project, or out of this one
	ManageWebhooks     Action = "manage webhooks"               // of the tenant or of a project, with their deliveries
)

// The matrix: what each role may do. An owner may do everything, so there is no row for it to be forgotten in.
var matrix = map[Action][]Role{
	ReadProject:        {Editor, Commenter, Viewer},
	EditProject:        {Editor},
	CreateProject:      {},
	ListProjects:       {},
	DeleteProject:      {},
	ManageMembers:      {},
	ReadConversation:   {Editor, Commenter, Viewer},
	TakePart:           {Editor, Commenter},
	CreateConversation: {Editor},
	EditConversation:   {Editor},
	DeleteConversation: {Editor},
	MoveConversation:   {},
	ManageWebhooks:     {},
}

// unseen are the actions whose object a member does not know of: they answer as if there were nothing.
var unseen = []Action{CreateProject, ListProjects, ManageWebhooks}
