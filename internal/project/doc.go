// Package project owns projects: what they are, what may be changed about them, and by whom.
//
// A project groups conversations and hands them instructions, a provider and a model. It lives in its owner's tenant, also
// when others are members of it (package member); what a role may do stands in package access. The package writes no SQL
// (sqlstore implements Store) and knows nothing of HTTP.
//
// States: active, paused, completed, archived; any may follow any.
package project
