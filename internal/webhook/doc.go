// Package webhook owns telling others what happened: endpoints that people register, the deliveries that each event
// makes for them, and the attempts at each delivery.
//
// A delivery is made by the transaction of the event itself (decision 0061), so there is one for every event that
// committed and none for any other. A Dispatcher, one per process, claims what is due in the tenants that are open,
// endpoint by endpoint, and sends it, signed as Standard Webhooks say. Whoever claims has a lease, longer than an
// attempt: what a process that died had claimed is due again when that is over, here or on another node. Every delivery
// arrives at least once, always under the same id; two attempts at one never run at the same time.
//
// How many attempts are made at once is bounded, and those at endpoints that fail or take long get only a share of that
// (places.go). Test calls are counted by themselves.
//
// The package never dials by itself: every call goes through outbound. It holds no SQL and keeps no secret in the
// clear, and neither addresses nor answers of endpoints are in its logs, errors or metrics.
//
// States of an endpoint:
//
//	active ──► paused      by its owner, or after 72 hours of nothing but failures: the owner is told
//	  ▲  ├───► disabled    it answered 410, or its secret cannot be read any more
//	  └──┴──── by its owner
//
// and deleted, which nobody sees: what is left of it is being removed (decision 0083)
//
// States of a delivery:
//
//	pending ──► succeeded   an answer 2xx
//	  │   ▲ └─► failed      the last of ten tries, 76 hours after the first, failed too
//	  │   │        │
//	  ▼   │        ▼
//	claimed      pending    sent again, by its owner: under the same id
package webhook
