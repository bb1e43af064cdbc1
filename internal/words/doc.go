// Package words owns how text becomes search terms, on both engines alike: folding, splitting, stemming, the query
// language, ranking and snippets.
//
// Engines only store and find the terms that this package makes, so the same question finds the same documents on
// SQLite (FTS5) and on PostgreSQL (tsvector). It imports nothing of the project and touches no database.
//
// A word is a run of letters and digits without case, accents and compatibility forms. Marks stay where they make
// another letter: in the scripts of India and South-East Asia, the voiced sounds of Japanese, the Cyrillic й, ў and ї.
// Scripts that put no spaces between words (Han, kana, Thai, Lao, Khmer, Myanmar), and emoji, are words of one
// character; a query in them is a phrase. An ending after an apostrophe belongs to its word, an article before one does
// not. Stems are English for Latin letters, whatever the language: German or French words find each other by accents
// and case, and by their forms only where English endings would do. Cyrillic has Russian stems, Arabic loses the article
// and common endings.
//
// A text becomes a [Doc] for the index; a question becomes a [Query]; a [Scorer] ranks what was found and marks it.
package words
