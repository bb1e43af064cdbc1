// Package sqlstore is SQL and nothing but SQL: every Store interface of the nouns, over SQLite files and PostgreSQL,
// from one text per statement.
//
// The engine layer is [DB], [Tx] and [Batch]: statements are queued and sent together, so a read is one round trip and
// a write is one or two. [Dialect] alone knows an engine's name; drivers' errors become faults by their codes. The
// files named after nouns hold the stores.
//
// It never decides who may do what, never opens a tenant without being told which (stores are bound to one database
// and no method takes a tenant id), never keeps a driver's text where it could quote what a user wrote, and never
// sets anything on a PostgreSQL connection that outlives the transaction. Below it are the nouns and seal; above it is
// workspace, the only door to a tenant's data.
//
// Reading connections of SQLite files share a budget ([Spare], decision 0040), so a read must not be asked for within
// another one of the same database. Databases of users ([Externals]) are reached with distrust of address and server: a
// budget of connections (decision 0014), limits on the wire (decision 0016), and [Patient] for work that nobody waits for.
//
// A write transaction:
//
//	new --Run--> begun --Run--> begun --Commit--> committed
//	               |  a statement fails, fn fails or panics      \-- no answer --> unknown ("outcome_unknown")
//	               +--> rolled back
package sqlstore
