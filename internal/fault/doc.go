// Package fault owns the project's one error type: a class that a door maps to a status, a stable code that
// clients may match, the operation that failed, a message that is safe to show, and a hidden cause.
//
// It never formats causes into what a user sees, never logs, and imports only the standard library. Every other
// package builds its errors here; each door holds one table from [Class] to its own vocabulary.
package fault
