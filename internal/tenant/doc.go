// Package tenant owns what a tenant is and where its database lives: Tenant, Placement, State, and the Directory in
// the master database that knows them all.
//
// It also owns the one grammar in which users write the address of a database of their own, which is hostile input:
// [ParseAddress].
//
// It opens nothing. Package workspace asks the Directory and opens databases; package sqlstore keeps the Directory.
package tenant
