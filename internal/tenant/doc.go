// Package tenant owns what a tenant is and where its database lives: Tenant, Placement, State, and the Directory in
// the master database that knows them all.
//
// It opens nothing. Package workspace asks the Directory and opens databases; package sqlstore keeps the Directory.
package tenant
