// Command live measures WebSockets of the real server from outside: what readers that stall cost those that read, what
// idle connections hold of memory, and how many deliveries a second rooms of ten take, beside a bare hub over the same
// library in a process of its own. bench/README.md says what it found.
//
//	go run ./bench/live                                     # all parts; some eight minutes
//	go run ./bench/live -only stalled -readers 100          # 100 that stall beside 100 that read
//	go run ./bench/live -only rooms -conns 500 -rounds 1    # smaller
//	go run ./bench/live -only idle -crowd 2000              # memory of idle connections alone
//
// The server is the binary as it ships, with its defaults, SQLite and no rate limit over HTTP; the limits of frames and of
// connections of an account hold. Ten accounts share a project and its conversations, and each has one connection in each
// of them: rooms of ten different people. Only ratios within one run count: what is compared is measured in rounds that
// take turns, and the order within a pair changes.
//
// The driver is a socket that decodes next to nothing, so that most of the processor is left to what is measured; it
// shares the machine all the same. It owns no verdict: it prints what it saw.
package main
