package httpapi

import "sort"

// Codes that the door itself answers with. Services have their own.
const (
	codeUnknownPath   = "not_found"
	codeMethod        = "method_not_allowed"
	codeMediaType     = "unsupported_media_type"
	codeMalformed     = "malformed_json"
	codeInvalid       = "invalid_input"
	codeTooLarge      = "too_large"
	codeThrottled     = "throttled"
	codeUnsigned      = "unauthenticated"
	codeTokenInvalid  = "token_invalid"
	codeForbidden     = "forbidden"
	codeCrossOrigin   = "cross_origin_refused"
	codeStale         = "stale_version"
	codeTimedOut      = "timed_out"
	codeStopping      = "server_stopping"
	codeInProgress    = "idempotency_in_progress"
	codeSlowBody      = "body_too_slow"
	codeNotAcceptable = "not_acceptable"
	codeNotReady      = "not_ready"
)

// Explanation tells what a code means and what to do about it.
type Explanation struct {
	Code  string
	Title string // the problem's title
	Help  string
}

// Codes returns the catalogue of every code a client may meet, by name.
func Codes() []Explanation {
	list := []Explanation{
		// The request.
		{"invalid_input", "The request is not valid", "`errors` lists every problem with its place in the request."},
		{"malformed_json", "The body is not proper JSON", "Send one JSON object in UTF-8, with each key once and spelt as documented."},
		{"invalid_text", "The text cannot be stored", "Send valid UTF-8 without NUL characters."},
		{"unsupported_media_type", "The body's type is not supported", "Send `Content-Type: application/json`."},
		{"not_acceptable", "The answer cannot have that type", "Accept `application/json`."},
		{"body_too_slow", "The body took too long", "Send the body faster, or in a better moment."},
		{"too_large", "Too large", "The body is over the limit of this call, or a value over what can be stored."},
		{"idempotency_mismatch", "The idempotency key was used for something else", "Use a new key for a new request."},
		{"idempotency_in_progress", "The first request with this key is still running", "Repeat after `Retry-After`."},
		{"not_found", "Nothing here", "It does not exist, or it is somebody else's: both are answered alike."},
		{"method_not_allowed", "This address does not take that method", "`Allow` lists the methods it takes."},
		{"conflict", "The current state does not allow it", "Read the resource again."},
		{"duplicate", "There is one of these already", "Read the one that exists."},
		{"stale_version", "Somebody changed it meanwhile", "Read the resource again and repeat the edit with its new `ETag`."},
		{"throttled", "Too many requests", "Come back after `Retry-After` seconds; `RateLimit` shows what is left."},
		{"canceled", "The client went away", "Nobody reads this one."},

		// Who asks.
		{"unauthenticated", "Sign in first", "Send an access token, or sign in again."},
		{"token_invalid", "The token is not valid", "It is wrong or has expired: refresh the session, or sign in again."},
		{"session_ended", "The session has ended", "Sign in again."},
		{"refresh_refused", "The session cannot be renewed", "It has ended, or its refresh token was used before: sign in again."},
		{"wrong_credentials", "E-mail or password is wrong", "Both are answered alike, so that nobody learns who has an account."},
		{"wrong_password", "The current password is wrong", "Changing the password needs the current one."},
		{"too_many_failures", "Too many failed attempts", "Wait for `Retry-After` seconds, then try again."},
		{"email_taken", "There is an account with this e-mail", "Sign in instead."},
		{"registration_closed", "Registration is closed", "Ask the operator for an account."},
		{"invitation_required", "Registration is by invitation", "Ask the operator for an invitation."},
		{"setup_token_invalid", "The setup token is not valid", "It is wrong, or was used already."},
		{"hashing_busy", "Too many people are signing in", "Repeat after `Retry-After` seconds."},
		{"ticket_invalid", "The ticket is not valid", "It is wrong, was used, or is older than 30 seconds: get a new one from `POST /auth/ws-ticket`."},
		{"token_expired", "The access token has expired", "Refresh it; a WebSocket renews itself with an `auth` frame before that."},
		{"query_token_refused", "Tokens in addresses are not taken", "Use a ticket, or send `auth` as the first frame; `WS_QUERY_TOKEN` allows it."},
		{"other_account", "The token is another account's", "Open another WebSocket for it."},
		{"forbidden", "Not allowed", "The account lacks the role for this."},
		{"role_forbids", "Your role in this project does not allow it", "Ask the project's owner for another role: viewers read, commenters also take part, editors also edit."},
		{"member_exists", "That is a member already", "Change the role of the one that is there."},
		{"too_many_members", "The project has no room for more members", "Remove members or invitations first."},
		{"owner_stays", "The owner of a project stays", "Delete the project, or keep it: its owner cannot be removed nor have another role."},
		{"cross_origin_refused", "Refused because of the request's origin", "Requests that carry cookies must come from the server's own origin or one of the allowed ones."},
		{"tenant_suspended", "The account's data is suspended", "Ask the operator."},
		{"tenant_read_only", "The account's data can only be read", "Ask the operator."},
		{"tenant_quarantined", "The account's database is not sound", "It can be read as far as possible until the operator has repaired it."},

		// WebSockets. Most stand in the final frame, with the close code.
		{"upgrade_required", "This address takes WebSockets only", "Open a WebSocket (RFC 6455)."},
		{"malformed_frame", "The frame is not proper JSON", "Send one JSON object in UTF-8, `{type, data, id?}`, with each key once."},
		{"frame_too_large", "The frame is too large", "Send long messages by HTTP."},
		{"frame_not_text", "The frame is binary", "Send text."},
		{"unknown_frame", "There is no frame of this type", "The documentation of `/ws` lists them."},
		{"room_not_joined", "The room was not joined", "Send `join_room` first."},
		{"too_many_rooms", "The connection is in too many rooms", "Leave one first."},
		{"too_many_sockets", "Too many WebSockets are open", "Close one, or come back later."},
		{"no_pong", "Pings were not answered", "Reconnect, and join with `after_seq`."},
		{"slow_reader", "What was sent was not read in time", "Reconnect, and join with `after_seq`."},

		// Jobs. Codes of a failed one stand in its `error`.
		{"job_finished", "The job has ended", "There is nothing to cancel."},
		{"job_uncancellable", "The job cannot be cancelled", "What is being erased cannot be brought back; what the operator asked for is the operator's to cancel."},

		{"quota_messages", "There is no room for more messages", "Delete conversations that are not needed, or ask the operator for more; `GET /usage` shows what is left."},
		{"quota_storage", "There is no room for more text", "Delete conversations that are not needed, or ask the operator for more; `GET /usage` shows what is left."},

		// Turns and providers. Provider codes also stand in the `error` of a failed message or turn.
		{"turn_running", "The turn is still running", "Stop it, or wait for its end."},
		{"turn_finished", "The answer is complete", "There is nothing to continue; ask for another answer with retry."},
		{"provider_not_configured", "No model is configured", "The operator has to set up a provider."},
		{"provider_auth", "The provider refused its key", "The operator has to check the provider's key."},
		{"provider_rejected", "The provider refused the request", "Change the model, its settings, or the message."},
		{"provider_too_long", "The conversation is too long for the model", "Start a new branch or conversation, or choose a model with a larger window."},
		{"provider_limited", "The provider's limit is reached", "Retry the turn later."},
		{"provider_overloaded", "The provider is overloaded", "Retry the turn later."},
		{"provider_failed", "The provider failed", "Retry the turn."},
		{"provider_cut", "The answer was cut off", "Continue the turn, or retry it."},
		{"provider_unreachable", "The provider cannot be reached", "Retry the turn later."},
		{"provider_timeout", "The provider took too long", "Retry the turn."},
		{"callback_timeout", "The answer did not come in time", "The workflow promised to answer later and did not. Retry the turn; the operator may have to look at the workflow's executions."},
		{"callback_unknown", "There is no such callback", "The address is wrong or too old, or what it was of is gone. Do not repeat it."},
		{"callback_used", "Another answer was delivered before", "The first one stays. Do not repeat it."},
		{"callback_late", "The turn has ended without this answer", "It was stopped, failed, or waited long enough. Do not repeat it."},
		{"callback_early", "The call has not been answered yet", "Answer the call with 202 first; deliver again after `Retry-After`."},
		{"signature_invalid", "The signature is not valid", "Sign `webhook-id.webhook-timestamp.body` with HMAC-SHA256 and the shared secret; the id is the turn, the time is now."},
		{"provider_malformed", "The provider's answer was not understood", "Retry the turn; the operator may have to look."},
		{"too_many_turns", "Too many answers are being written", "Repeat after `Retry-After` seconds."},

		// A database of one's own. These also stand in the problems of a test.
		{"address_refused", "That address may not be reached", "Use a public address, or ask the operator to allow its network in `OUTBOUND_ALLOW`."},
		{"address_unreachable", "The address does not answer", "Check host, port and firewall."},
		{"tls_required", "That address may be reached with TLS only", "Use `sslmode=verify-full`, or ask the operator to allow its network in `OUTBOUND_ALLOW`."},
		{"tls_refused", "The database server does not offer TLS", "Turn TLS on there."},
		{"tls_failed", "The database server's certificate was not accepted", "It must be valid now, name the host, and be issued by an authority that the server knows."},
		{"login_refused", "The database server does not let that user in", "Check user name and password, and from where the server lets the user in."},
		{"login_unsafe", "The database server asks for the password in an unsafe form", "Let it use `scram-sha-256`, or TLS."},
		{"database_missing", "There is no such database", "Check the database's name."},
		{"database_misbehaved", "The database server's answer was not accepted", "It must be a PostgreSQL server, or a pooler in front of one."},
		{"server_too_old", "The PostgreSQL server is too old", "Use PostgreSQL 14 or newer."},
		{"server_read_only", "The PostgreSQL server takes no writes", "Give the address of the primary; when it is that, see what its operator says."},
		{"encoding_not_utf8", "The database's encoding is not UTF8", "Make another database with that encoding."},
		{"create_schema_denied", "The user may not make a schema there", "`GRANT CREATE ON DATABASE … TO …` allows it."},
		{"schema_exists", "The schema is there already", "Rename or drop it first."},
		{"schema_in_use", "Something that is not ours lies among the tables or depends on them", "Move or drop it first, such as a table or a view of your own."},
		{"superuser_login", "The user is a superuser", "Make one that may only create a schema in this database."},
		{"read_only_default", "Transactions are read-only by default there", "Some providers do that when the disk is full: see whether there is room."},
		{"commits_asynchronous", "The database server commits asynchronously", "It is told not to for what this program writes."},
		{"connection_plain", "The connection is not encrypted", "Use `sslmode=verify-full` where the server offers TLS."},
		{"external_unsupported", "Databases of one's own are not supported here", "Ask the operator."},
		{"too_many_databases", "The account has as many databases as it may have", "Delete a configuration that is not needed."},
		{"database_in_use", "The account's data lives there, or is being copied there", "Activate another database first; or wait for the end of the job that copies, or cancel it."},
		{"database_kept", "The original of the account's data, half a copy, or something that nobody here knows of, is kept there", "Release it first; what nobody knows of is the operator's to look at."},
		{"database_released", "The database was released", "Give its password again, or register it anew."},
		{"database_hosted", "The database is a hosted one", "Only its name can be edited, and the last hosted entry stays."},
		{"database_not_a_file", "The database is not a file", "Only hosted SQLite files have keys of their own."},
		{"tenant_busy", "Another job works on the account's data", "Wait for its end, or cancel it."},
		{"move_mismatch", "The copy does not hold what the original holds", "Nothing was moved. Start the move again; when it fails again, tell the operator."},
		{"row_damaged", "Something of the data cannot be copied", "Nothing was moved. Tell the operator."},
		{"table_damaged", "A table is not as it should be", "Nothing was moved. Tell the operator."},
		{"move_overtaken", "Something else moved the data meanwhile", "Read the databases again."},
		{"too_many_connections", "Too many connections to databases are in use", "Repeat after `Retry-After` seconds."},

		// Webhooks.
		{"too_many_tests", "Too many test calls of webhooks are under way", "Come back after `Retry-After` seconds: an account may have four at once."},
		{"too_many_webhooks", "The account has as many webhooks as it may have", "Delete one that is not needed, or let one take more types of events."},
		{"webhook_not_active", "Nothing is sent to this webhook", "Make it active first: `PATCH` it with `state`."},

		// The server.
		{"internal", "Something went wrong on the server", "A defect. The request id finds it in the server's log."},
		{"unavailable", "Not available at the moment", "Repeat after `Retry-After` seconds."},
		{"busy", "The database is busy", "Repeat after `Retry-After` seconds."},
		{"outcome_unknown", "Nobody knows whether it was stored", "Repeat it with the same `Idempotency-Key`, which cannot store it twice; without one, look first."},
		{"storage_full", "The storage is full", "Nothing more can be stored until the operator makes room; what is stored can be read."},
		{"timeout", "The database took too long", "Repeat after `Retry-After` seconds."},
		{"timed_out", "It took too long", "The server gave up on the request; what had been committed stays."},
		{"not_ready", "The server is not ready", "It is starting, or something that it needs is away."},
		{"server_stopping", "The server is stopping", "Repeat the request: another server, or this one, answers soon. A turn that was asked for goes its own way."},
		{"server_stopped", "The server stopped while it was answering", "Continue the turn, or retry it."},
		{"shutting_down", "The server is stopping", "Repeat the request in a moment."},
		{"too_many_tenants", "Too many databases are in use", "Repeat after `Retry-After` seconds."},
		{"tenant_moved", "The account's data is being moved to another place", "Repeat after `Retry-After` seconds."},
		{"tenant_unavailable", "The account's database cannot be used", "Repeat after `Retry-After` seconds. Other accounts are not affected."},
	}
	// What stands in the error of an answer that lost its server, and what operators' commands and jobs say.
	list = append(list,
		Explanation{"migration_failed", "The account's database could not be brought up to date", "It can be read; the operator has to look."},
		Explanation{"snapshot_failed", "The account's data could not be kept before a migration", "Nothing was changed; the operator has to look."},
		Explanation{"snapshot_missing", "Nothing was kept of the time before the migration", "Restore from a backup instead."},
		Explanation{"bus_unreachable", "NATS cannot be reached", "Nothing is lost, but other servers' answers come late: the operator has to look at `NATS_URL` and its server."},
		Explanation{"bus_refused", "NATS does not let this server in", "The operator has to check the credentials in `NATS_URL`, and what they permit."},
		Explanation{"bus_tls_failed", "The certificate of NATS was not accepted", "It must be valid now, name the host, and be issued by an authority that the server knows."},
		Explanation{"mail_rejected", "The mail server refuses a mail for good", "It is not tried again. The server's own log says why: the address, the sender or the content."},
		Explanation{"mail_not_accepted", "The mail server does not take a mail now", "It is tried again for three days. The operator has to look at `SMTP_URL` and `MAIL_FROM` when it lasts."},
		Explanation{"mail_server_unreachable", "The mail server cannot be reached", "Mails wait for three days. The operator has to look at `SMTP_URL` and its server."},
		Explanation{"spool_full", "There is no room for answers whose database is away", "The operator has to make room."},
		Explanation{"stopped_elsewhere", "The answer was stopped without the server that wrote it", "What that server had stored is kept; it adds its last words when it can."},
		Explanation{"owner_gone", "The server that wrote this answer went away", "Continue the turn, or retry it."},
		Explanation{"newer_writes", "Something was written since", "Going back loses it: say that it may be lost."},
		Explanation{"version_differs", "The server is of another version", "Start the server and the command from the same program."},
		Explanation{"key_differs", "The server has another master key", "Start the server with the new `MASTER_KEY`, and the old one as `MASTER_KEY_PREVIOUS`."},
		Explanation{"fleet_busy", "A migration of all tenants is at work", "Wait for its end."},
		Explanation{"backup_repository_other", "The backups are of another installation", "Set `STORAGE_PATH` and `MASTER_DATABASE_URL` right, or name another place for backups."},
		Explanation{"tenant_unknown", "There is no such tenant", "List the tenants."})
	// What is wrong with an account's database is the operator's to mend; clients see that it is not available.
	for _, code := range []string{"tenant_missing", "tenant_host_unknown", "database_closed", "database_forbidden",
		"database_version", "database_unreachable", "database_busy", "database_full", "database_damaged",
		"storage_failed", "tenant_unreadable", "schema_newer", "schema_damaged", "commits_not_durable", "seal_broken", "seal_unknown_key"} {
		list = append(list, Explanation{code, "The account's database cannot be used",
			"Repeat after `Retry-After` seconds; when it lasts, whoever runs that database has to look."})
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Code < list[j].Code })
	return list
}

// explain finds a code's entry; a code that is missing gets a bland title, and a failing test.
func explain(code string) Explanation {
	list := Codes()
	i := sort.Search(len(list), func(i int) bool { return list[i].Code >= code })
	if i < len(list) && list[i].Code == code {
		return list[i]
	}
	return Explanation{Code: code, Title: "The request failed"}
}
