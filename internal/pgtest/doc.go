// Package pgtest owns the real PostgreSQL that tests run against: a throw-away cluster on a random loopback port,
// a fresh database in it for every test that asks, and a real PgBouncer before it ([Pooled]). Bad networks are the
// package toxic.
//
// Most tests want one line, [URL]. Its cluster comes from TEST_POSTGRES_URL when a wrapper (with-postgres, used by
// `make test`) has started one for many packages, and is otherwise started once for the test process. Tests about
// crashes and settings want a cluster of their own, [Start], which they may kill and start again, or freeze and thaw.
//
// It never skips: without PostgreSQL a test fails and says how to install it. It never makes a commit cheaper than
// in production: fsync, synchronous_commit and full_page_writes keep their defaults unless the caller asks. Where
// memory has room, with-postgres has the data there: what is killed here are processes, which take nothing of it along. It is
// for tests only; nothing that ships may import it. Roles belong to a cluster, not to a database: names of roles
// must be unique among all tests that run at once.
//
// A cluster's life:
//
//	         Freeze -> frozen -> Thaw
//	            |                  |
//	Start -> running -> Kill -> crashed -> Restart -> running -> Stop -> gone
//	            |                  |
//	            +------------------+--> gone, too, whenever the process that started it ends, in whatever way
//
// The last arrow is drawn by a keeper: a small shell that waits for the end of a pipe only the test process holds.
package pgtest
