// Command bench measures the server: everyday calls, search in a long history, the length of a conversation, cold
// tenants, streams of many answers. README.md says what it found and how to repeat it.
//
//	go run ./bench                  # both engines; some minutes
//	go run ./bench -engine sqlite -only 'search|streams' -quick
//
// Machines differ and are noisy, so what counts are ratios within one run: a call against a bare net/http server that
// moves the same bytes through encoding/json (the echo), a stream against a bare relay of the same upstream, a long
// conversation against a short one. What is compared is measured in turns; of the ratios of all turns the median is
// given, with the extremes.
//
// The real binary runs in a process of its own, and so do echo and relay; the driver and the emulated model share this
// process. The program starts its own PostgreSQL. It measures only and asserts nothing but that answers are right.
package main
