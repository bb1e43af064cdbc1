package claude

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/fault"
)

// ScriptedModel is the model name of every scripted answer.
const ScriptedModel = "scripted-1"

// scriptedLabel begins every scripted answer, so that nobody takes one for Claude's.
const scriptedLabel = "[scripted]"

// ScriptedConfig says how fast a Scripted model speaks.
type ScriptedConfig struct {
	// WordDelay is the pause between two words; 0 means 20 ms, a negative value means none.
	WordDelay time.Duration
	// SlowDelay is the pause between two words of an answer to #slow; 0 means 500 ms, a negative value means none.
	SlowDelay time.Duration
}

// Scripted is a conversation.Model that asks nobody: it answers by rule, the same prompt always alike, so that a
// checkout without a key can be tried and tested from end to end. Without a rule it repeats the question, so an
// answer is at least as long. The rules are looked for in the last text block of the newest user message:
//
//	#long N           N numbered words (at most 100,000)
//	#say TEXT         TEXT, to the end of the block, exactly
//	#refuse           a refusal: stop reason "refusal"
//	#error [N] [CODE] fails after N words (5) with the provider code (provider_failed)
//	#slow             half a second between words; goes with the other rules
//
// A request to go on with an unfinished answer gets a sentence that ends it.
// A prompt with MaxTokens gets an answer cut there, with stop reason "max_tokens".
type Scripted struct {
	wordDelay, slowDelay time.Duration
}

var _ conversation.Model = (*Scripted)(nil)

// NewScripted returns a Scripted model.
func NewScripted(c ScriptedConfig) *Scripted {
	s := &Scripted{wordDelay: c.WordDelay, slowDelay: c.SlowDelay}
	if s.wordDelay == 0 {
		s.wordDelay = 20 * time.Millisecond
	}
	if s.slowDelay == 0 {
		s.slowDelay = 500 * time.Millisecond
	}
	return s
}

// Answer implements conversation.Model.
func (s *Scripted) Answer(ctx context.Context, p conversation.Prompt, sink func(text string)) (conversation.Answer, error) {
	begun := time.Now()
	script := scriptFor(p)
	delay := s.wordDelay
	if script.slow {
		delay = s.slowDelay
	}

	var said strings.Builder
	var first time.Duration
	timer := time.NewTimer(0)
	defer timer.Stop()
	for i, word := range script.words {
		if script.failure != "" && i >= script.failAfter {
			break
		}
		if err := pause(ctx, timer, i, delay); err != nil {
			return scriptedAnswer(p, said.String(), first), err
		}
		if i == 0 {
			first = max(time.Since(begun), 1)
		}
		said.WriteString(word)
		sink(word)
	}
	a := scriptedAnswer(p, said.String(), first)
	if script.failure != "" {
		return a, fault.New(fault.Unavailable, "claude.Scripted", script.failure, "the scripted model failed, as the question asked it to")
	}
	a.StopReason = script.stopReason
	return a, nil
}

// pause waits before every word but the first; a cancelled context ends it at once.
func pause(ctx context.Context, timer *time.Timer, word int, delay time.Duration) error {
	if word == 0 || delay <= 0 {
		return ctx.Err()
	}
	timer.Reset(delay)
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return ctx.Err()
	}
}

// script is what a Scripted model will do with one prompt.
type script struct {
	words      []string // their concatenation is the answer
	stopReason string
	slow       bool
	failure    string // code to fail with; empty means none
	failAfter  int    // words said before the failure
}

// A rule stands at the beginning of the text or after white space, so that an address with a fragment is none.
var (
	ruleLong   = regexp.MustCompile(`(?:^|\s)#long\s+(\d{1,6})\b`)
	ruleSay    = regexp.MustCompile(`(?s)(?:^|\s)#say\s(.*)$`)
	ruleRefuse = regexp.MustCompile(`(?:^|\s)#refuse\b`)
	ruleError  = regexp.MustCompile(`(?:^|\s)#error\b(?:[ \t]+(\d{1,6})\b)?(?:[ \t]+(provider_[a-z_]+)\b)?`)
	ruleSlow   = regexp.MustCompile(`(?:^|\s)#slow\b`)
)

const scriptedLongest = 100_000

func scriptFor(p conversation.Prompt) script {
	question, command := newestQuestion(p.Messages)
	sc := script{stopReason: "end_turn"}
	var text string
	say := ruleSay.FindStringSubmatchIndex(command)
	if say != nil {
		// What is to be said is no command, whatever it holds.
		text = scriptedLabel + " " + command[say[2]:say[3]]
		command = command[:say[0]]
	}
	if m := ruleLong.FindStringSubmatch(command); m != nil && text == "" {
		text = numberedWords(m[1])
	}
	if text == "" && ruleRefuse.MatchString(command) {
		sc.stopReason = "refusal"
		text = scriptedLabel + " I will not answer this, as the question asked me not to."
	}
	if text == "" && question == conversation.GoOn {
		text = " " + scriptedLabel + " Here the answer goes on, and ends: it was rehearsed, and no model was asked."
	}
	if text == "" {
		text = echo(question, len(p.Messages))
	}
	if m := ruleError.FindStringSubmatch(command); m != nil {
		sc.failure, sc.failAfter = conversation.CodeProviderFailed, 5
		if m[1] != "" {
			sc.failAfter, _ = strconv.Atoi(m[1])
		}
		if knownProviderCode(m[2]) {
			sc.failure = m[2]
		}
	}
	sc.slow = ruleSlow.MatchString(command)
	sc.words = splitWords(text)
	if p.MaxTokens > 0 {
		sc.cutTo(p.MaxTokens)
	}
	return sc
}

// cutTo ends the answer at the last word that keeps it within the bound; at least one word is said.
func (sc *script) cutTo(maxTokens int) {
	characters := 0
	for i, word := range sc.words {
		characters += utf8.RuneCountInString(word)
		if i > 0 && scriptedTokens(characters) > int64(maxTokens) {
			sc.words, sc.stopReason = sc.words[:i], "max_tokens"
			return
		}
	}
}

func echo(question string, messages int) string {
	if strings.TrimSpace(question) == "" {
		return scriptedLabel + " Your message has no text that I could repeat."
	}
	return fmt.Sprintf("%s You said: %s\n\nThis is a rehearsed answer to message %d of this conversation; no model was asked.",
		scriptedLabel, question, messages)
}

func numberedWords(count string) string {
	n, _ := strconv.Atoi(count)
	n = min(n, scriptedLongest)
	var b strings.Builder
	b.WriteString(scriptedLabel)
	for i := 1; i <= n; i++ {
		b.WriteString(" word-")
		b.WriteString(strconv.Itoa(i))
	}
	return b.String()
}

// newestQuestion returns the text of the newest user message, and the block of it in which rules are looked for.
func newestQuestion(messages []conversation.PromptMessage) (question, command string) {
	for i := len(messages) - 1; i >= 0; i-- {
		if messages[i].Role != "user" {
			continue
		}
		var texts []string
		for _, raw := range messages[i].Blocks {
			var block struct{ Type, Text string }
			if json.Unmarshal(raw, &block) == nil && block.Type == "text" {
				texts = append(texts, block.Text)
				command = block.Text
			}
		}
		return strings.Join(texts, "\n"), command
	}
	return "", ""
}

// splitWords cuts text into words, each with the white space that follows it. A word without an end, as in
// languages that write none, is cut after some characters, so that it still arrives bit by bit.
func splitWords(text string) []string {
	const longest = 48
	var words []string
	begin, length, space := 0, 0, false
	for i, r := range text {
		white := unicode.IsSpace(r)
		if i > begin && (space && !white || length >= longest) {
			words = append(words, text[begin:i])
			begin, length = i, 0
		}
		space = white
		length++
	}
	if begin < len(text) {
		words = append(words, text[begin:])
	}
	return words
}

func scriptedAnswer(p conversation.Prompt, text string, first time.Duration) conversation.Answer {
	a := conversation.Answer{Model: ScriptedModel, Text: text, FirstToken: first, RequestID: scriptedID(p)}
	if text == "" {
		return a
	}
	characters := utf8.RuneCountInString(p.System)
	for _, m := range p.Messages {
		for _, block := range m.Blocks {
			characters += utf8.RuneCount(block)
		}
	}
	a.Blocks = []json.RawMessage{saidBlock(text)}
	a.Usage = conversation.Usage{InputTokens: scriptedTokens(characters), OutputTokens: scriptedTokens(utf8.RuneCountInString(text))}
	a.RawUsage, _ = json.Marshal(a.Usage)
	return a
}

// scriptedTokens is the rule of thumb: four characters a token.
func scriptedTokens(characters int) int64 { return int64(characters+3) / 4 }

// scriptedID is the same for the same prompt, as everything about an answer is.
func scriptedID(p conversation.Prompt) string {
	h := fnv.New64a()
	h.Write([]byte(p.System))
	for _, m := range p.Messages {
		h.Write([]byte{0})
		h.Write([]byte(m.Role))
		for _, block := range m.Blocks {
			h.Write([]byte{0})
			h.Write(block)
		}
	}
	return "scripted_" + hex.EncodeToString(h.Sum(nil))
}

// saidBlock is a text block with the text.
func saidBlock(text string) json.RawMessage {
	raw, err := json.Marshal(struct {
		Type string `json:"type"`
		Text string `json:"text"`
	}{"text", text})
	if err != nil { // a string always marshals
		return json.RawMessage(`{"type":"text","text":""}`)
	}
	return raw
}

func knownProviderCode(code string) bool {
	switch code {
	case conversation.CodeProviderAuth, conversation.CodeProviderRejected, conversation.CodeProviderTooLong,
		conversation.CodeProviderLimited, conversation.CodeProviderOverloaded, conversation.CodeProviderFailed,
		conversation.CodeProviderCut, conversation.CodeProviderUnreachable, conversation.CodeProviderTimeout,
		conversation.CodeProviderMalformed:
		return true
	}
	return false
}
