// Package relocate owns what is done with whole tenants: choosing where their data lives, moving it there while it is
// used, erasing it, rotating the keys around it, bringing the schemas of many up to date and back (fleet.go, back.go,
// snapshots.go), and (repository.go and its neighbours) backing it up and restoring it.
//
// Its jobs live in the master database and are run by package job. What moves is read and written by sqlstore, opened
// by workspace; the rules of who may ask for it are here. It knows nothing of what a tenant wrote.
//
// A move:
//
//	making ──► copying ──► following ──► verifying ──► switching ──► finished
//	   │          │            │             │             │
//	   └──────────┴────────────┴─────────────┴─────────────┴──► undone: the tenant is where it was
//
// Up to the commit in the master database that names the new place, the old one is the tenant's; whatever happens before
// is undone, whatever happens after is finished. Both may be done again. A way back to a kept original is made beside it,
// and takes its name while switching (decision 0080).
//
// A fleet of tenants, of which each one knows how far it is (decisions 0032, 0033):
//
//	canaries, one by one ──► the rest, several at once ──► all are looked at
//	    │                          └──► paused: too many failed; asking again goes on
//	    └──► ended: a canary failed
//
// A backup (decision 0021):
//
//	announced ──► erasures carried over ──► master read ──► tenants read, several at once ──► manifest ──► looked at again
//	    │                  │                     │                     │
//	    └──────────────────┴─────────────────────┴─────────────────────┴──► broken off: files that no manifest names
//
// Rows are packed into chunks, each compressed, sealed under a key of its tenant and named by a keyed hash of its content:
// what did not change is not written again. A snapshot exists from the moment when its manifest does, and is not touched
// after that. A tenant's key is the one thing that must go for all its copies to be unreadable.
package relocate
