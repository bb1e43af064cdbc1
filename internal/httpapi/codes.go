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
		{"internal", "Something went wrong on the server", "A defect. The request id finds it in the server's log."},
		{"invalid_input", "The request is not valid", "`errors` lists every problem with its place in the request."},
		{"malformed_json", "The body is not proper JSON", "Send one JSON object in UTF-8, with each key once and spelt as documented."},
		{"invalid_cursor", "The cursor is not valid", "Cursors come from `next_cursor` and belong to the same filters and order."},
		{"unsupported_media_type", "The body's type is not supported", "Send `Content-Type: application/json`."},
		{"not_acceptable", "The answer cannot have that type", "Accept `application/json`."},
		{"body_too_slow", "The body took too long", "Send the body faster, or in a better moment."},
		{"too_large", "Too large", "The body is over the limit of this call."},
		{"idempotency_mismatch", "The idempotency key was used for something else", "Use a new key for a new request."},
		{"idempotency_in_progress", "The first request with this key is still running", "Repeat after `Retry-After`."},
		{"unauthenticated", "Sign in first", "Send an access token, or sign in again."},
		{"token_invalid", "The token is not valid", "Sign in again, or refresh the session."},
		{"token_expired", "The token has expired", "Refresh the session and repeat the request."},
		{"session_ended", "The session has ended", "Sign in again."},
		{"bad_credentials", "E-mail or password is wrong", "Both are answered alike, so that nobody learns who has an account."},
		{"forbidden", "Not allowed", "The account lacks the role for this."},
		{"cross_origin_refused", "Refused because of the request's origin", "Requests that carry cookies must come from the server's own origin or one of the allowed ones."},
		{"not_found", "Nothing here", "It does not exist, or it is somebody else's: both are answered alike."},
		{"method_not_allowed", "This address does not take that method", "`Allow` lists the methods it takes."},
		{"conflict", "The current state does not allow it", "Read the resource again."},
		{"stale_version", "Somebody changed it meanwhile", "Read the resource again and repeat the edit with its new `ETag`."},
		{"throttled", "Too many requests", "Come back after `Retry-After` seconds; `RateLimit` shows what is left."},
		{"unavailable", "Not available at the moment", "Repeat after `Retry-After` seconds."},
		{"timed_out", "It took too long", "The server gave up on the request; what had been committed stays."},
		{"not_ready", "The server is not ready", "It is starting, or something that it needs is away."},
		{"server_stopping", "The server is stopping", "Repeat the request: another server, or this one, answers soon. A turn that was asked for goes its own way."},
		{"canceled", "The client went away", "Nobody reads this one."},
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
