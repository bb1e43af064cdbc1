package conversation

import (
	"context"
	"encoding/json"
	"time"
)

// Model answers prompts. Implementations live in package claude: Direct (the Anthropic API), N8N (a workflow) and
// Scripted (rules, no key). They are safe for concurrent use.
type Model interface {
	// Answer generates one assistant message. It calls sink with every piece of text as it arrives, in order, from
	// one goroutine at a time; sink never blocks for long. It returns what arrived together with the error when the
	// answer could not be finished, so the caller can keep a partial answer.
	//
	// A cancelled ctx means stop now: return the partial Answer and ctx's error. Every other error is a *fault.Error
	// whose Code is one of the provider codes below and whose message is safe to show to the user.
	// An answer that ended without the provider's end mark is an error with code CodeProviderCut.
	Answer(ctx context.Context, p Prompt, sink func(text string)) (Answer, error)
}

// Codes of provider failures: stored with a failed message, shown to users, catalogued in the docs.
const (
	CodeProviderAuth        = "provider_auth"        // the key or secret was refused
	CodeProviderRejected    = "provider_rejected"    // the provider says the request is invalid
	CodeProviderTooLong     = "provider_too_long"    // the prompt is over the provider's window
	CodeProviderLimited     = "provider_limited"     // rate or spend limit
	CodeProviderOverloaded  = "provider_overloaded"  // 529, or overloaded in mid-stream
	CodeProviderFailed      = "provider_failed"      // 5xx or an error of its own
	CodeProviderCut         = "provider_cut"         // the stream ended without its end mark
	CodeProviderUnreachable = "provider_unreachable" // no connection, name or TLS failure
	CodeProviderTimeout     = "provider_timeout"     // our own deadline passed
	CodeProviderMalformed   = "provider_malformed"   // the answer could not be understood
	CodeCallbackTimeout     = "callback_timeout"     // an answer that was to come later has not come in time
)

// Prompt is one request to a model. Everything a provider sees of a tenant is in here.
type Prompt struct {
	Turn         string // turn_…: also the idempotency key of outgoing calls
	Conversation string // conv_…
	Account      string // opaque id of the account, for the provider's abuse metadata
	Model        string // model id as the user chose it; empty means the provider's default
	MaxTokens    int    // upper bound of the answer; 0 means the provider's default
	System       string // rendered system prompt, byte for byte what is stored; may be empty
	Messages     []PromptMessage
	Settings     json.RawMessage // provider settings of the conversation ({"thinking":…,"effort":…}); may be nil
	// Callback is where the answer may be delivered later, until Until, instead of in the response; empty: nowhere.
	Callback string
	Until    time.Time
}

// PromptMessage is one message of the prompt.
type PromptMessage struct {
	Role   string            // user or assistant
	Blocks []json.RawMessage // content blocks as the Messages API knows them, verbatim
	// CacheMark asks for a prompt-cache breakpoint on the last cacheable block of this message. The context builder
	// marks at most three messages, so that with the system prompt's the provider's limit of four holds.
	CacheMark bool
}

// Answer is what a model said.
type Answer struct {
	Model        string            // the model that really answered
	Blocks       []json.RawMessage // content blocks verbatim, thinking and unknown ones included
	Text         string            // the text blocks joined; exactly the concatenation of what sink received
	StopReason   string            // the provider's word: end_turn, max_tokens, refusal, …
	Usage        Usage
	CostMicroUSD int64           // by the price file; 0 when the model has no price
	RawUsage     json.RawMessage // the provider's usage object verbatim, for repricing; may be nil
	FirstToken   time.Duration   // from the call to the first text or block; 0 if none came
	RequestID    string          // the provider's id of the call, for support
	Later        bool            // the answer will come by the prompt's Callback; nothing else is filled in
}

// Usage counts tokens as Anthropic does: input excludes what was read from or written to the cache.
type Usage struct {
	InputTokens              int64 `json:"input_tokens"`
	OutputTokens             int64 `json:"output_tokens"`
	CacheReadInputTokens     int64 `json:"cache_read_input_tokens"`
	CacheCreationInputTokens int64 `json:"cache_creation_input_tokens"`
}
