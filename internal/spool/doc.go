// Package spool keeps on this machine's disk what a tenant's database does not take at the moment: per tenant and turn
// a short list of records, sealed, bounded, and on the disk when Append returns.
//
// It knows nothing of what the records say, decides nothing about them and speaks to no database. Who wrote them reads
// them back, stores them where they belong and drops them. A process that dies leaves its records to the next one that
// is started on the same folder.
//
// The life of a turn's records:
//
//	(none) ── Append ──► kept ── Append ──► kept ── Drop, Discard ──► (none)
//	                      └── cannot be read, SetAside ──► a file that nothing looks at any more
package spool
