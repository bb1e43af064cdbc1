// Package ident owns typed identifiers and the Actor, the proof of who is asking.
//
// An identifier is a type prefix and 26 lower-case characters: a UUIDv7 in Crockford base32, so identifiers sort by
// the time they were made. Each kind is a Go type of its own, so that one cannot be passed for another. The package
// never looks anything up: whether an identifier exists is the stores' business.
package ident
