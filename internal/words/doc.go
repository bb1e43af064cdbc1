// Package words owns how text becomes search terms, on both engines alike: folding, splitting, stemming, the query
// language, ranking figures and snippets.
//
// Engines only store and find the terms that this package makes, so the same question finds the same documents on
// SQLite (FTS5) and on PostgreSQL (tsvector). It imports nothing of the project and touches no database.
package words
