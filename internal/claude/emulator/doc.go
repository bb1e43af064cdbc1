// Package emulator owns our own Anthropic Messages API, for tests, benchmarks and trials without a key. It is never
// part of the binary: only test files and the commands of benchmarks import it.
//
// It counts tokens and money as the real one does (a prefix cache with breakpoints, look-back, lifetimes and minimum
// lengths; rate limits that cache reads do not touch), signs thinking blocks and checks that they come back unmodified
// behind the prefix they were made for, validates requests, and fails in every way on demand ([Script], [Fault]).
// What it received is in the [Server.Journal], byte for byte.
//
// What it says is made up: the answer to a question repeats the question. Where the real service's behaviour is known
// only roughly, the emulator is the stricter of the two.
//
// It imports nothing of package claude, so that neither takes the other's mistakes over; its facts about models are a
// table of its own. It never opens a listener: callers mount [Server.Handler] where they like, on the loopback address.
package emulator
