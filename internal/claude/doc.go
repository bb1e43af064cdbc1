// Package claude owns the three ways to an answer, each a [conversation.Model]:
//
//   - [Direct] speaks to the Anthropic Messages API with the official SDK;
//   - N8N hands the prompt to an n8n workflow and reads what the workflow answers;
//   - Scripted: rules, no key needed, development only.
//
// It also owns what is known about models: [Prices] holds the dated price file, context windows and the estimate of
// tokens before a call; [ValidateSettings] knows which settings of a conversation may reach a provider.
//
// It never stores anything, never decides what belongs into a prompt (package conversation does), never reads the
// environment, and never repeats a provider's words in an error: an error text of the provider may quote the prompt.
//
// Content blocks are sacred. What the provider sent is handed back byte for byte where the wire allows it, unknown
// blocks included, and what the caller gives is sent byte for byte: thinking signatures are bound to the exact prefix
// and the prompt cache hashes it.
//
// The states of one call of Direct:
//
//	waiting ──first event──▶ silent ──first text──▶ speaking ──message_stop──▶ done
//	   │ ▲                     │  ▲                    │
//	   │ └──── retry ──────────┘  │                    └─ error, cut, stop ──▶ partial answer + error
//	   └────── retry ─────────────┘
//
// A retry happens only while nothing has reached the sink, within [DirectConfig].MaxRetries, the caller's deadline
// and the [RetryBudget] that all calls of the process share.
//
// Neighbours: conversation (below) states the contract, seal keeps the key, outbound may supply the HTTP client.
// Package claude/emulator is our Anthropic API for tests; it is never part of the binary.
package claude
