// Package mail owns messages to people: what one may say, the Outbox that keeps it until it is sent, and the ways out of
// the house: an SMTP server, or, in development, a folder.
//
// Whoever has something to say calls Enqueue, which returns once that is on disk; sending happens later and elsewhere, so
// how long a request takes tells nobody whether there was somebody to write to. A mail is claimed with a lease that outlasts
// an attempt, so no two nodes send it at once; one that a process died over is sent by the next, under the same Message-ID.
// What a mail says is sealed while it waits, and gone once it is sent. The package writes no SQL, knows no noun, and puts
// neither addresses nor contents into errors or logs.
//
//	waiting ──► claimed ──► settled (sent, or given up: what it said is gone, its name is remembered)
//	   ▲           │
//	   └───────────┘ not accepted, or the process died: again, later and later, for three days
package mail
