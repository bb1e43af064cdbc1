// Package audit owns the trail: one Entry per change, derived from the change's events inside the transaction that
// commits it, and entries for what is no change (a refused login, a denied access), appended directly.
//
// Entries hold who, what, when, from where and with which result, never content. Each database has its own trail: the
// tenant's speaks of its data, the master's of accounts and sessions. Stores call Derive; nothing else writes entries.
package audit
