// Package cataloguetest holds events that were really committed against the catalogue. It is for tests only; it reads no
// log itself.
package cataloguetest
