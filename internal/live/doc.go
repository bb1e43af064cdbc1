// Package live owns WebSocket connections: who is connected, the rooms that they are in, and what travels between them.
//
// It decodes frames, calls one service method, and encodes. It parses no tokens (account does), decides about no access
// (workspace.Pool.Enter does, at joining, at every action, and again whenever something about an account changes), and
// stores nothing: events come from tenants' logs (workspace.Feeds), pieces of answers from conversation.Service.Follow,
// typing and presence from the bus.
//
// A room is a conversation or a project. It hands its members every event that concerns it, in the order of the log, each
// once; of a conversation's running turns also the pieces of text, never before the turn's start and all of them before
// its end.
//
// States of a connection:
//
//	(upgrade) ──► anonymous ──► signed in ──► ending ──► (gone)
//	                  │              │   ▲       ▲
//	                  │              └───┘       │  auth: another token of the same account
//	                  └──────────────────────────┘  no auth frame in time, or a frame before it
//
// Everything that may grow has a bound: frames, their rate, rooms, connections of an account, bytes that wait for a slow
// reader. How a connection ends is told by its close code (codes.go).
package live
