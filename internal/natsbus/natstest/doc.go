// Package natstest owns the NATS server of tests: embedded, on a free port of the loopback address, without anything that it
// keeps. It is never part of the binary.
package natstest
