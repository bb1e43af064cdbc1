// Package relocate owns what is done with whole tenants: choosing where their data lives, moving it there while it is
// used, erasing it, rotating the keys around it, and (repository.go and its neighbours) backing it up and restoring it.
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
// is undone, whatever happens after is finished. Both may be done again.
package relocate
