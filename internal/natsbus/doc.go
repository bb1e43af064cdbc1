// Package natsbus owns the event.Bus of several nodes: what one publishes, subscribers on all of them hear, over NATS.
//
// Core NATS only. It keeps nothing and promises nothing, which is all that a bus needs: the truth is in the databases, and
// whoever may have lost a signal is told to read it again. Signals of the own node do not go through NATS. What goes out is
// sealed with a key that all nodes of an installation have, under subjects that begin with a name of the installation's:
// several can share one NATS, and none of them, nor whoever runs it, reads or forges another's.
//
// States of a Bus:
//
//	          Join              NATS answers
//	alone ──────────► away ◄──────────────────► joined          Close, from any: alone again
//	                            the link breaks
//
// It publishes nowhere else while it is away, and tells its subscribers every two seconds that they may have lost
// something. Back again, it tells them once more, and the subscribers on other nodes of whatever it said lately. (Decision
// 0052.)
package natsbus
