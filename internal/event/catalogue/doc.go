// Package catalogue owns the list of everything that happens in tenants' logs: each type of event with its meaning, the
// JSON Schema of its data and an example.
//
// It says what is; it makes nothing happen. Services write events, doors serve the list, webhooks ask it whether a filter
// can ever match. What goes into the master database's log alone (sign-ins, tenants, jobs) is nobody's to subscribe to and
// is not here. Tests hold the list against what is really sent: a type that is not here fails them, and so does one that
// nothing sends.
package catalogue
