// Package storetest owns the one suite that every engine of sqlstore has to pass: what the nouns' Store interfaces
// promise, said as tests, one file per noun.
//
// It is for tests only. It opens no database (the Harness of the engine's own tests does), knows no SQL and no engine,
// and skips nothing: what one engine cannot do, none may.
package storetest
