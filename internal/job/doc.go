// Package job owns long work: what a job is, its states, its progress and report, and the Runner that claims jobs from
// a store, runs them, renews their leases and hears when somebody cancels.
//
// What the work is, each kind's Work knows; a job of which the process died is claimed again, by whoever is alive, and
// Work decides from what it had saved whether to go on or to undo. Who may claim which kind is decision 0042. The package
// keeps nothing itself and opens nothing: its Store is implemented by sqlstore.
//
//	queued ──► running ──► completed | failed | cancelled
//	  │           ▲ │
//	  │           └─┘ its process died: claimed again when the lease is over
//	  └──► cancelled
package job
