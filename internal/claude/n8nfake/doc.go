// Package n8nfake is n8n as a backend sees it: the webhook face of a workflow, for ordinary tests. It answers with the
// shapes that a real n8n 2.41 was seen to answer with, which the opt-in suite in n8nsuite checks against the real one.
//
// It runs no workflows; tests say what it shall answer, and when it shall deliver an answer that it promised for later. It imports only the standard library and is
// not part of the binary.
package n8nfake
