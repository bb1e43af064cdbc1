// Package account owns who may sign in: accounts, passwords, sessions and the tokens that stand for them.
//
// Service is what doors and the operator's commands call; Store is what it needs of the master database (sqlstore
// implements it); Hasher is a small pool of its own, because hashing passwords is the cheapest way to kill a server;
// Provisioner makes a new account's tenant. The package knows no HTTP and no content of any tenant.
//
// A session is a family of refresh tokens of which one is current. Refreshing replaces it; the one before is honoured
// for a few seconds and answers with the same successor, since clients race with themselves. Any other earlier token
// that comes back was stolen or copied: the whole session ends.
//
//	current ──refresh──► previous ──grace over──► spent ──seen again──► session ends
package account
