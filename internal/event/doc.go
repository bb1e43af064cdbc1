// Package event owns the Event (something that happened and was committed), the Change (events and the idempotency
// record that a store commits in one transaction with the state they describe), the Log (the committed events of one
// database, in order) and the Bus (signals that wake whoever follows).
//
// The truth is the log: a signal on the bus only says "look again", or carries what is never stored (the pieces of a
// running answer, typing). The package writes no SQL and knows no subscriber.
package event
