// Package lab owns what experiments on the real server share: building and running the binary, killing it, a plain
// client of its HTTP interface, a reader of its event streams, the emulated model behind it, and the tables of reports.
//
// Benchmarks, the replay of conversations and the crash harness use it; it is never part of the binary. It knows the
// server only from outside, as api.md describes it, and decides nothing about what is measured or asserted.
//
// States of a Server:
//
//	starting ──► serving ──► gone     killed at once, stopped in order, or ended by itself
package lab
