// Package fleet makes installations of many tenants, quickly and without a server: accounts with their databases and
// access tokens, and conversations in them, through the services and stores that the server uses; messages are written
// many at once. The server is then started on what is there.
//
// It is for benchmarks and for tests that need many tenants; it is never part of the binary. It decides nothing about
// what is measured.
package fleet
