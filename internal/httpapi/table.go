package httpapi

import (
	"net/http"

	"github.com/danielgtaylor/huma/v2"
)

const (
	tagAuth          = "Auth"
	tagProjects      = "Projects"
	tagConversations = "Conversations"
	tagTurns         = "Turns"
	tagN8N           = "n8n"
	tagDatabase      = "Database"
	tagJobs          = "Jobs"
	tagUsage         = "Usage"
	tagLive          = "Live"
	tagWebhooks      = "Webhooks"
	tagAudit         = "Audit"
	tagHealth        = "Health"
	tagDocs          = "Docs"
)

// operations is the table. A row without access would be public by mistake: a test refuses that.
func operations() []operation {
	var table []operation
	for _, part := range [][]operation{authRows(), projectRows(), conversationRows(), turnRows(), callbackRows(), databaseRows(), jobRows(),
		socketRows(), eventRows(), webhookRows(), otherRows()} {
		table = append(table, part...)
	}
	return table
}

// row is an operation of the API proper: signed in, limited per account.
func row(tag, id, method, path, summary string, mount func(*Server, huma.API, huma.Operation)) operation {
	o := operation{tag: tag, summary: summary, mount: mount, status: http.StatusOK,
		OperationInfo: OperationInfo{ID: id, Method: method, Path: basePath + path, Access: Account, Limit: Ordinary}}
	switch method {
	case http.MethodPost, http.MethodPut, http.MethodPatch:
		o.Body = SmallBody
	case http.MethodDelete:
		o.status = http.StatusNoContent
	}
	return o
}

// with changes a row on its way into the table.
func (o operation) with(change func(*operation)) operation {
	change(&o)
	return o
}

// bare says that a POST has neither body nor answer.
func bare(o *operation) { o.Body, o.status = NoBody, http.StatusNoContent }

// creates says that a POST makes something, once per idempotency key.
func creates(o *operation) { o.status, o.once = http.StatusCreated, true }

// refuses adds statuses of problems.
func refuses(statuses ...int) func(*operation) {
	return func(o *operation) { o.errors = append(o.errors, statuses...) }
}

const (
	missing  = http.StatusNotFound
	conflict = http.StatusConflict
	stale    = http.StatusPreconditionFailed
)

func authRows() []operation {
	signIn := func(o *operation) {
		o.Access, o.Limit, o.secret = Public, SignIn, true
		refuses(http.StatusUnauthorized, http.StatusForbidden)(o)
	}
	return []operation{
		row(tagAuth, "register", "POST", "/auth/register", "Make an account", on((*Server).register)).with(signIn).
			with(refuses(conflict)).with(creates),
		row(tagAuth, "login", "POST", "/auth/login", "Sign in", on((*Server).login)).with(signIn),
		row(tagAuth, "refresh", "POST", "/auth/refresh", "Renew a session's tokens", on((*Server).refresh)).with(signIn).
			with(func(o *operation) {
				o.optional = true
				o.description = "Every refresh token works once. Using one again ends the session: somebody may have copied it."
			}),
		row(tagAuth, "logout", "POST", "/auth/logout", "End this session", on((*Server).logout)).with(bare),
		row(tagAuth, "logout-all", "POST", "/auth/logout-all", "End every session of the account",
			on((*Server).logoutAll)).with(bare),
		row(tagAuth, "read-profile", "GET", "/auth/profile", "Read the own account", on((*Server).profile)),
		row(tagAuth, "edit-profile", "PATCH", "/auth/profile", "Edit the own account", on((*Server).patchProfile)),
		row(tagAuth, "change-password", "POST", "/auth/password", "Change the password", on((*Server).changePassword)).
			with(func(o *operation) {
				o.status, o.secret = http.StatusNoContent, true
				o.description = "All other sessions of the account end."
			}),
		row(tagAuth, "erase-profile", "POST", "/auth/profile/erase", "Erase the account, or all that it holds",
			on((*Server).erase)).with(refuses(conflict)).with(func(o *operation) {
			o.description = "Needs the password again. With `account` every session ends at once, and nothing of the account " +
				"can be brought back; databases of the account's own are emptied of our tables as far as they can be reached. " +
				"The answer is 200 when all is done, 202 while it goes on. The receipt says what was erased, where and how."
			o.answers = map[string]*huma.Response{"200": {Description: "It has ended: `state` tells how"},
				"202": {Description: "Under way", Content: map[string]*huma.MediaType{
					"application/json": {Schema: &huma.Schema{Ref: "#/components/schemas/Erased"}}}}}
		}),
		row(tagAuth, "list-sessions", "GET", "/auth/sessions", "List the account's sessions", on((*Server).listSessions)),
		row(tagAuth, "end-session", "DELETE", "/auth/sessions/{id}", "End a session", on((*Server).endSession)).
			with(refuses(missing)),
	}
}

func projectRows() []operation {
	return []operation{
		row(tagProjects, "list-projects", "GET", "/projects", "List projects, newest first", on((*Server).listProjects)),
		row(tagProjects, "create-project", "POST", "/projects", "Make a project", on((*Server).createProject)).with(creates),
		row(tagProjects, "read-project", "GET", "/projects/{id}", "Read a project", on((*Server).findProject)).
			with(refuses(missing)),
		row(tagProjects, "replace-project", "PUT", "/projects/{id}", "Replace what can be edited",
			on((*Server).putProject)).with(refuses(missing, stale)),
		row(tagProjects, "edit-project", "PATCH", "/projects/{id}", "Edit some fields", on((*Server).patchProject)).
			with(refuses(missing, stale)),
		row(tagProjects, "delete-project", "DELETE", "/projects/{id}", "Delete a project", on((*Server).deleteProject)).
			with(refuses(missing, stale)),
		row(tagProjects, "list-members", "GET", "/projects/{id}/members", "List members, the owner first", on((*Server).listMembers)).
			with(refuses(missing)).with(func(o *operation) {
			o.description = "Invitations come last, and the owner alone sees them."
		}),
		row(tagProjects, "add-member", "POST", "/projects/{id}/members", "Let somebody take part", on((*Server).addMember)).
			with(creates).with(refuses(missing)).with(func(o *operation) {
			o.description = "Viewers read; commenters also send messages, stop and repeat answers; editors also start, edit and " +
				"delete conversations and edit the project. Only its owner adds and removes members and deletes it. An address " +
				"without an account is invited: whoever registers with it becomes a member."
		}),
		row(tagProjects, "change-member", "PATCH", "/projects/{id}/members/{user_id}", "Give a member another role",
			on((*Server).changeMember)).with(refuses(missing, conflict)),
		row(tagProjects, "remove-member", "DELETE", "/projects/{id}/members/{user_id}", "Remove a member, or leave",
			on((*Server).removeMember)).with(refuses(missing, conflict)).with(func(o *operation) {
			o.description = "The owner removes anybody else; members remove themselves. Access ends at once."
		}),
	}
}

func conversationRows() []operation {
	return []operation{
		row(tagConversations, "list-conversations", "GET", "/conversations", "List conversations",
			on((*Server).listConversations)),
		row(tagConversations, "create-conversation", "POST", "/conversations", "Start a conversation",
			on((*Server).createConversation)).with(creates),
		row(tagConversations, "search-conversations", "GET", "/conversations/search", "Search titles and messages",
			on((*Server).search)),
		row(tagConversations, "read-conversation", "GET", "/conversations/{id}", "Read a conversation",
			on((*Server).findConversation)).with(refuses(missing)),
		row(tagConversations, "replace-conversation", "PUT", "/conversations/{id}", "Replace what can be edited",
			on((*Server).putConversation)).with(refuses(missing, stale)),
		row(tagConversations, "edit-conversation", "PATCH", "/conversations/{id}", "Edit some fields",
			on((*Server).patchConversation)).with(refuses(missing, stale)),
		row(tagConversations, "delete-conversation", "DELETE", "/conversations/{id}",
			"Delete a conversation with everything in it", on((*Server).deleteConversation)).with(refuses(missing, stale)),
		row(tagConversations, "list-messages", "GET", "/conversations/{id}/messages", "List messages",
			on((*Server).listMessages)).with(refuses(missing)),
	}
}

func turnRows() []operation {
	asks := func(o *operation) {
		creates(o)
		o.waits = true
		o.description += "\n\nAnswers 201 when the model has answered, whatever came of it: `turn.state` tells. " +
			"With `stream: true` or `Accept: text/event-stream` it answers an event stream; with `Prefer: respond-async` " +
			"it answers 202 at once. In every case the turn goes on when the client goes away; `Location` is where it can " +
			"be read and followed."
		o.answers = map[string]*huma.Response{
			"201": exchangeResponse("The model has answered, or was not asked", true),
			"200": streamResponse(),
			"202": exchangeResponse("The message is stored and the model is at work", false),
		}
		refuses(missing)(o)
	}
	return []operation{
		row(tagTurns, "send-message", "POST", "/conversations/{id}/messages", "Say something, and get an answer",
			on((*Server).sendMessage)).with(func(o *operation) {
			o.Body = MessageBody
			o.description = "`parent_id` makes a branch: an edit is a sibling of what it replaces."
		}).with(asks),
		row(tagTurns, "read-turn", "GET", "/conversations/{id}/turns/{turn_id}", "Read a turn with its messages",
			on((*Server).findTurn)).with(refuses(missing)),
		row(tagTurns, "follow-turn", "GET", "/conversations/{id}/turns/{turn_id}/events", "Follow a turn",
			on((*Server).followTurn)).with(refuses(missing)).with(func(o *operation) {
			o.waits = true
			o.description = "The turn's event stream from the start, or after `Last-Event-ID`. When nothing is left after " +
				"it, the answer is 204, and an EventSource stops asking."
			o.answers = map[string]*huma.Response{"200": streamResponse(), "204": {Description: "The stream is over"}}
		}),
		row(tagTurns, "stop-turn", "POST", "/conversations/{id}/turns/{turn_id}/stop", "Stop a turn; what has arrived stays",
			on((*Server).stopTurn)).with(func(o *operation) { o.Body = NoBody }).with(refuses(missing, conflict)),
		row(tagTurns, "retry-turn", "POST", "/conversations/{id}/turns/{turn_id}/retry",
			"Ask for another answer to the same message", on((*Server).retryTurn)).
			with(asks).with(func(o *operation) { o.optional = true }),
		row(tagTurns, "continue-turn", "POST", "/conversations/{id}/turns/{turn_id}/continue",
			"Let the model go on where it was cut off", on((*Server).continueTurn)).
			with(asks).with(func(o *operation) { o.optional = true }),
	}
}

func otherRows() []operation {
	probeRow := func(id, path, summary string, access Access, mount func(*Server, huma.API, huma.Operation)) operation {
		return row(tagHealth, id, "GET", "/health"+path, summary, mount).with(func(o *operation) {
			o.Access, o.Limit = access, Unlimited
		})
	}
	text := func(kinds ...string) func(*operation) {
		return func(o *operation) {
			content := map[string]*huma.MediaType{}
			for _, k := range kinds {
				content[k] = &huma.MediaType{Schema: &huma.Schema{}}
				if kinds[0] == "text/plain" {
					content[k].Schema.Type = "string"
				}
			}
			o.answers = map[string]*huma.Response{"200": {Description: "OK", Content: content}}
		}
	}
	open := func(id, path, summary string, hidden bool, mount func(*Server, huma.API, huma.Operation)) operation {
		return row(tagDocs, id, "GET", "", summary, mount).with(func(o *operation) {
			o.Path, o.Access, o.Limit, o.Hidden = path, Public, Ordinary, hidden
		})
	}
	return []operation{
		row(tagUsage, "read-usage", "GET", "/usage", "Read what the account keeps, and what it may", on((*Server).usage)).
			with(func(o *operation) {
				o.description = "A message that has no room answers 403 `quota_messages` or `quota_storage`. What is deleted makes room."
			}),
		row(tagAudit, "list-audit", "GET", "/audit", "Read the own audit trail, newest first", on((*Server).listAudit)),
		probeRow("health", "", "Is it there, and which version", Public, on((*Server).health)),
		probeRow("health-detailed", "/detailed", "The server and what it depends on", Metrics, on((*Server).detailed)),
		probeRow("readiness", "/readiness", "Should it get requests", Public, on((*Server).readiness)),
		probeRow("liveness", "/liveness", "Is the process alive", Public, on((*Server).liveness)),
		probeRow("metrics", "/metrics", "Numbers for Prometheus", Metrics, on((*Server).metricsText)).with(text("text/plain")),
		probeRow("info", "/info", "Version, runtime and uptime", Public, on((*Server).info)),
		open("openapi-json", specPath, "This document", true, on((*Server).specJSON)),
		open("openapi-yaml", specPathY, "This document", true, on((*Server).specYAML)),
		open("docs", docsPath, "The documentation page", true, on((*Server).docs)),
		open("docs-errors", errorsPath, "What the problem codes mean", true, on((*Server).errorsPage)),
		open("docs-asset", docsPath+"/{file}", "Parts of the documentation page", true, on((*Server).docsAsset)),
	}
}

// databaseRows are about where the account's data lives. They work while it cannot be reached.
func databaseRows() []operation {
	return []operation{
		row(tagDatabase, "list-databases", "GET", "/database", "List the account's databases, newest first",
			on((*Server).listDatabases)).with(func(o *operation) {
			o.description = "The hosted database always has an entry. What is shown of the database in use is at most a minute " +
				"old, unless it cannot be reached: then `problem` says why."
		}),
		row(tagDatabase, "create-database", "POST", "/database", "Register a PostgreSQL of one's own",
			on((*Server).createDatabase)).with(creates).with(refuses(conflict)).with(func(o *operation) {
			o.description = "Give `name` and `url`, or `name` and separate fields. Nothing is sent there: testing and activating do. " +
				"The password is kept sealed and never shown."
		}),
		row(tagDatabase, "test-database", "POST", "/database/test", "Test a database", on((*Server).testDatabase)).
			with(refuses(missing, conflict)).with(func(o *operation) {
			o.description = "Give an address as for registering one, or the `id` of a configuration. Of an address nothing is stored, " +
				"and nothing is left there. `ok` is false when there is a problem of level `error`; each says what to do about it."
		}),
		row(tagDatabase, "read-database", "GET", "/database/{id}", "Read a configuration", on((*Server).findDatabase)).
			with(refuses(missing)),
		row(tagDatabase, "edit-database", "PATCH", "/database/{id}", "Edit a configuration", on((*Server).patchDatabase)).
			with(refuses(missing, conflict, stale)).with(func(o *operation) {
			o.description = "New credentials are in force with the next connection; nothing is interrupted. The address of a " +
				"database that data lives in cannot be changed: register the other one and activate it."
		}),
		row(tagDatabase, "delete-database", "DELETE", "/database/{id}", "Forget a configuration",
			on((*Server).deleteDatabase)).with(refuses(missing, conflict, stale)).with(func(o *operation) {
			o.description = "A hosted one may go when nothing is in it and another hosted one stays."
		}),
		row(tagDatabase, "activate-database", "POST", "/database/{id}/activate", "Move the account's data to this database",
			on((*Server).activateDatabase)).with(refuses(missing, conflict)).with(func(o *operation) {
			o.Body, o.status, o.once = NoBody, http.StatusAccepted, true
			o.description = "Starts a job that copies everything, follows what is written meanwhile, compares both by count and " +
				"content, and switches; requests wait for the moment of the switch. Cancelled or failed, it leaves the data where " +
				"it was. The original is kept, read-only, until it is released; activating it again is the way back, which leaves " +
				"it as it is until the switch."
		}),
		row(tagDatabase, "release-database", "POST", "/database/{id}/release", "Let go of a database that data no longer lives in",
			on((*Server).releaseDatabase)).with(refuses(missing, conflict)).with(func(o *operation) {
			o.Body = NoBody
			o.description = "In a database of one's own the tables stay, complete and readable, and the server forgets how to sign in " +
				"there. A hosted original is destroyed."
		}),
	}
}

func jobRows() []operation {
	return []operation{
		row(tagJobs, "list-jobs", "GET", "/jobs", "List jobs, newest first", on((*Server).listJobs)),
		row(tagJobs, "read-job", "GET", "/jobs/{id}", "Read a job", on((*Server).findJob)).with(refuses(missing)),
		row(tagJobs, "cancel-job", "POST", "/jobs/{id}/cancel", "Cancel a job", on((*Server).cancelJob)).
			with(refuses(missing, conflict)).with(func(o *operation) {
			o.Body = NoBody
			o.description = "A queued job is cancelled at once, a running one as soon as it notices: it undoes what it did. " +
				"`state` tells."
		}),
	}
}

// exchangeResponse describes a turn with its messages; mount fills in the schema.
func exchangeResponse(description string, replayable bool) *huma.Response {
	r := &huma.Response{Description: description, Content: map[string]*huma.MediaType{"application/json": {}},
		Headers: map[string]*huma.Param{"Location": {Description: "The turn", Schema: &huma.Schema{Type: "string"}}}}
	if replayable {
		r.Headers["Idempotency-Replayed"] = &huma.Param{Schema: &huma.Schema{Type: "string"}}
	}
	return r
}

// streamResponse describes the events.
func streamResponse() *huma.Response {
	return &huma.Response{
		Description: "Server-Sent Events, each with an `id`: `turn.started`, `message.delta`, `message.completed`, then " +
			"one of `turn.completed`, `turn.failed`, `turn.stopped`, `turn.interrupted`; `ping` every 15 s. A late " +
			"reader's first `message.delta` holds everything before. `turn.waiting` comes when a workflow will answer later; " +
			"`turn.deadline` says until when.",
		Content: map[string]*huma.MediaType{"text/event-stream": {Schema: &huma.Schema{Type: "string"},
			Example: "id: 1\nevent: message.delta\ndata: {\"message_id\":\"msg_…\",\"offset\":0,\"text\":\"Hello\"}\n\n"}},
	}
}
