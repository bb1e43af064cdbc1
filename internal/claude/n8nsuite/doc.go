// Package n8nsuite runs claude.N8N and the workflows of deploy/n8n against a real n8n, in front of our own Anthropic
// emulator. It is a test with the build tag n8n: opt-in, because n8n is large and takes minutes to install
// (scripts/n8n-setup). What it learns about n8n's answers is what n8nfake plays in the ordinary tests.
//
// It never reaches the network beyond the loopback address, and ends the n8n that it started by its process id.
package n8nsuite
