// Package bustest owns the conformance suite of event.Bus: what every bus promises, on one node and over several. It is for
// tests only; it opens nothing itself and asserts nothing about how quickly a signal arrives.
package bustest
