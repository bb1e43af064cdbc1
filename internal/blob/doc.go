// Package blob owns files by name: a folder of this machine, or a bucket of an S3-compatible server.
//
// A name is a path of lower-case letters, digits and "._-", chosen by whoever keeps files here; nothing of a user's
// text is ever part of one. A file appears complete or not at all, and one that was put is there after a power cut. A
// file is replaced as a whole; there are no locks, no versions and no folders of their own: who needs an order of
// things writes, then looks.
//
// It never looks into a file, never encrypts (callers hand it sealed bytes) and never prints an address with its
// secret. It imports fault and nothing else of ours.
package blob
