// Package toxic owns bad networks for tests: a proxy before a server that makes every round trip slower, swallows
// everything, or is gone. It is toxiproxy, run inside the test's own process, and dies with it.
//
// States of a Link:
//
//	          Hang                Cut
//	open ◄──────────► hanging    ───► cut ──Restore──► open
//	       Restore
package toxic
