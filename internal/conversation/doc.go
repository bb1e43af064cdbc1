// Package conversation owns conversations, their tree of messages, and turns: one request to a model and everything
// that comes of it.
//
// Service is what doors call; Store is what it needs of a tenant's database (sqlstore implements it); Model is what it
// needs of a provider (package claude implements it); Engine runs turns on the server's account, so that no client is
// needed to finish one. The package writes no SQL, opens no connection and knows no HTTP.
//
// Messages are append-only rows in a tree. Every message lies on a numbered branch of its conversation at a depth: the
// first child of a message continues its branch, a further child opens a new one that forks at the parent's depth.
// A path from the root to a message is therefore a short list of ranges, and any page of it is read by depth.
//
// States of a turn (and of its assistant's message):
//
//	streaming ──┬────────────► completed
//	   │        ├────────────► failed        the provider gave up; what arrived is kept
//	   │        ├────────────► stopped       somebody said stop
//	   │        └────────────► interrupted   its owner is gone: crash, restart, lost lease
//	   └► waiting ──► completed | failed | stopped
//
// A turn waits when its workflow has promised to deliver the answer later. Then nobody runs it: it names no node, and its
// lease is the time at which it fails unless the answer has come ([Service.Deliver]). It never becomes interrupted.
//
// The four ends are final: retry and continue make a new turn with a sibling message.
package conversation
