package sqlstore

import (
	"slices"
	"strconv"
	"strings"

	"claude-memory-backend/internal/ident"
	"claude-memory-backend/internal/words"
)

// The index of words is one row per message and one per title, under the n of that message or conversation.
//
// SQLite: FTS5 with a column of words in their order and one of stems. PostgreSQL: one tsvector; stems stand behind a
// tilde, which no word has, and have no position. filler is a word that no text has: on SQLite it takes the place of
// words that are not found as part of a phrase, and in front of a role it makes a stem that no word has.
const filler = "·"

// indexMessage writes, or writes again, the words of a message that is already in its table.
func indexMessage(b *Batch, d Dialect, id ident.MessageID, text string) {
	doc := words.Index(text)
	if d == Postgres {
		b.Exec(`INSERT INTO message_words (n, words)
			SELECT n, CAST(? AS tsvector) || array_to_tsvector(ARRAY['·' || role]) FROM messages WHERE id = ?
			ON CONFLICT (n) DO UPDATE SET words = EXCLUDED.words`, tsvector(doc), id)
		return
	}
	b.Exec(`INSERT OR REPLACE INTO message_words (rowid, words, stems)
		SELECT n, ?, ? || ' ·' || role FROM messages WHERE id = ?`,
		ftsWords(doc), strings.Join(doc.Stems, " "), id)
}

// indexTitle does the same for the title of a conversation.
func indexTitle(b *Batch, d Dialect, id ident.ConversationID, title string) {
	doc := words.Index(title)
	if d == Postgres {
		b.Exec(`INSERT INTO title_words (n, words) SELECT n, CAST(? AS tsvector) FROM conversations WHERE id = ?
			ON CONFLICT (n) DO UPDATE SET words = EXCLUDED.words`, tsvector(doc), id)
		return
	}
	b.Exec(`INSERT OR REPLACE INTO title_words (rowid, words, stems) SELECT n, ?, ? FROM conversations WHERE id = ?`,
		ftsWords(doc), strings.Join(doc.Stems, " "), id)
}

// unindexConversation removes the words of a conversation, its messages and its title. It must come before their rows
// go. On PostgreSQL the words go with the rows.
func unindexConversation(b *Batch, d Dialect, id ident.ConversationID) {
	if d == Postgres {
		return
	}
	b.Exec(`DELETE FROM message_words WHERE rowid IN (SELECT n FROM messages WHERE conversation_id = ?)`, id)
	b.Exec(`DELETE FROM title_words WHERE rowid IN (SELECT n FROM conversations WHERE id = ?)`, id)
}

// ftsWords is the text of the column of words; the tokenizer splits it at the spaces.
func ftsWords(doc words.Doc) string {
	var b strings.Builder
	for i, w := range doc.Words {
		if i > 0 {
			b.WriteByte(' ')
		}
		if w == "" {
			w = filler
		}
		b.WriteString(w)
	}
	for _, w := range doc.More {
		b.WriteString(" " + filler + " ")
		b.WriteString(w)
	}
	return b.String()
}

// tsvector is the text form of a tsvector.
func tsvector(doc words.Doc) string {
	places := make(map[string][]int, len(doc.Words))
	order := make([]string, 0, len(doc.Words))
	for i, w := range doc.Words {
		if w == "" {
			continue
		}
		if places[w] == nil {
			order = append(order, w)
		}
		places[w] = append(places[w], i+1)
	}
	slices.Sort(order) // PostgreSQL sorts faster what is sorted
	var out []byte
	for _, w := range order {
		out = lexeme(out, w)
		for i, p := range places[w] {
			out = append(out, ":,"[min(i, 1)])
			out = strconv.AppendInt(out, int64(p), 10)
		}
		out = append(out, ' ')
	}
	for _, w := range doc.More {
		if places[w] == nil {
			out = append(lexeme(out, w), ' ')
		}
	}
	for _, s := range doc.Stems {
		out = append(lexeme(out, "~"+s), ' ')
	}
	return string(out)
}

// lexeme quotes a word in the way of tsvector and tsquery.
func lexeme(out []byte, word string) []byte {
	out = append(out, '\'')
	for i := range len(word) {
		if word[i] == '\'' || word[i] == '\\' {
			out = append(out, word[i])
		}
		out = append(out, word[i])
	}
	return append(out, '\'')
}
