// Command locomo replays a long conversation of the LoCoMo benchmark through the HTTP interface of a real server, turn
// by turn, and then asks the benchmark's questions of the search: how often is a turn that answers the question among
// the first 5, 10 and 25 results?
//
//	go run ./bench/locomo -file locomo.json                      # a server of its own for each engine
//	go run ./bench/locomo -file locomo.json -engine sqlite
//	go run ./bench/locomo -file locomo.json -url http://127.0.0.1:3001 -model 127.0.0.1:9009
//
// With -url the server is somebody else's; it must have ANTHROPIC_BASE_URL at the address given as -model, and
// RATE_LIMIT=off. The data is not part of this repository and must not become so: its licence allows benchmarks only,
// and nothing may be tuned to its wording.
//
// All sessions make one conversation, one message for each turn, so that every turn has an id of its own. Speaker A is
// the user. Speaker B is the assistant wherever B answers A: the turn is a question to the model, and the emulated
// model says B's words. Where A is not answered (the last words of a session), the message asks nobody; where B opens
// a session, there is no question for a model to answer, and B's words are stored as a message that asks nobody.
package main
