// Package account owns who may sign in: accounts, passwords, sessions and the tokens that stand for them.
//
// Service is what doors and the operator's commands call; Store is what it needs of the master database (sqlstore
// implements it); Hasher is a small pool of its own, because hashing passwords is the cheapest way to kill a server;
// Provisioner makes a new account's tenant, before the account is stored with its tenant, its session, its events and
// its idempotency record in one transaction. The package knows no HTTP, sends no mail and sees no content of any
// tenant.
//
// Strangers learn nothing: signing in as nobody costs and answers the same as with a wrong password, failures of
// accounts that do not exist count like others, under keyed hashes, and every bad token is refused in the same words.
//
// A session is a family of refresh tokens of which one is current. Refreshing replaces it; the one before is honoured
// for a few seconds and answers with the same successor, since clients race with themselves. Any other earlier token
// that comes back was stolen or copied: the whole session ends.
//
//	current --refresh--> previous --grace over, or another refresh--> spent --seen again--> the session ends
package account
