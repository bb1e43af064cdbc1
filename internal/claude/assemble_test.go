package claude

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
)

const opening = `{"type":"message_start","message":{"id":"msg_1","model":"m","content":[],"usage":{"input_tokens":3,"output_tokens":1,"cache_creation":{"ephemeral_5m_input_tokens":7,"ephemeral_1h_input_tokens":0},"server_tool_use":null}}}`

// play feeds one block's events between a start and an end.
func play(t *testing.T, start string, deltas ...string) *assembler {
	t.Helper()
	a := &assembler{}
	events := []string{opening, `{"type":"content_block_start","index":0,"content_block":` + start + `}`}
	for _, delta := range deltas {
		events = append(events, `{"type":"content_block_delta","index":0,"delta":`+delta+`}`)
	}
	events = append(events, `{"type":"content_block_stop","index":0}`,
		`{"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"input_tokens":null,"output_tokens":9}}`,
		`{"type":"message_stop"}`)
	for _, event := range events {
		if err := a.feed([]byte(event)); err != nil {
			t.Fatalf("%s: %v", event, err)
		}
	}
	return a
}

func TestBlocksAreAssembled(t *testing.T) {
	for _, tc := range []struct {
		claim  string
		start  string
		deltas []string
		want   string
	}{
		{"text, keys in their order", `{"type":"text","text":"a","id":7}`, []string{`{"type":"text_delta","text":"<b>"}`, `{"type":"text_delta","text":"c\u2028"}`}, `{"type":"text","text":"a<b>c\u2028","id":7}`},
		{"thinking", `{"type":"thinking","thinking":"","signature":""}`, []string{`{"type":"thinking_delta","thinking":"hm"}`, `{"type":"signature_delta","signature":"s+/="}`}, `{"type":"thinking","thinking":"hm","signature":"s+/="}`},
		{"omitted thinking", `{"type":"thinking","thinking":"","signature":""}`, []string{`{"type":"signature_delta","signature":"s"}`}, `{"type":"thinking","thinking":"","signature":"s"}`},
		{"redacted thinking", `{"type":"redacted_thinking","data":"xyz=="}`, nil, `{"type":"redacted_thinking","data":"xyz=="}`},
		{"tool input keeps its bytes", `{"type":"tool_use","id":"t","name":"n","input":{}}`, []string{`{"type":"input_json_delta","partial_json":""}`, `{"type":"input_json_delta","partial_json":"{\"z\": 1.0,"}`, `{"type":"input_json_delta","partial_json":"\"a\":[]}"}`}, `{"type":"tool_use","id":"t","name":"n","input":{"z": 1.0,"a":[]}}`},
		{"tool without input", `{"type":"tool_use","id":"t","name":"n","input":{}}`, []string{`{"type":"input_json_delta","partial_json":""}`}, `{"type":"tool_use","id":"t","name":"n","input":{}}`},
		{"citations", `{"type":"text","text":"","citations":null}`, []string{`{"type":"citations_delta","citation":{"n":1}}`, `{"type":"text_delta","text":"x"}`, `{"type":"citations_delta","citation":{"n":2}}`}, `{"type":"text","text":"x","citations":[{"n":1},{"n":2}]}`},
		{"server tool result", `{"type":"web_search_tool_result","tool_use_id":"s","content":[{"type":"web_search_result","encrypted_content":"e="}]}`, nil, `{"type":"web_search_tool_result","tool_use_id":"s","content":[{"type":"web_search_result","encrypted_content":"e="}]}`},
		{"compaction", `{"type":"compaction","content":null}`, []string{`{"type":"compaction_delta","content":"sum","encrypted_content":"e"}`}, `{"type":"compaction","content":"sum","encrypted_content":"e"}`},
		{"unknown block and delta", `{"type":"novelty","mood":"c","list":[1],"n":1}`, []string{`{"type":"mood_delta","mood":"al"}`, `{"type":"mood_delta","mood":"m","list":[2,3],"n":2,"new":{"z":1,"a":2}}`}, `{"type":"novelty","mood":"calm","list":[1,2,3],"n":2,"new":{"z":1,"a":2}}`},
	} {
		t.Run(tc.claim, func(t *testing.T) {
			a := play(t, tc.start, tc.deltas...)
			out := a.answer()
			want := strings.ReplaceAll(tc.want, `\u2028`, "\u2028")
			got := strings.ReplaceAll(string(out.Blocks[0]), `\u2028`, "\u2028")
			if len(out.Blocks) != 1 || got != want {
				t.Fatalf("have %s\nwant %s", got, want)
			}
		})
	}
}

func TestUsageIsCumulative(t *testing.T) {
	out := play(t, `{"type":"text","text":"x"}`).answer()
	want := `{"input_tokens":3,"output_tokens":9,"cache_creation":{"ephemeral_5m_input_tokens":7,"ephemeral_1h_input_tokens":0},"server_tool_use":null}`
	if string(out.RawUsage) != want || out.Usage.InputTokens != 3 || out.Usage.OutputTokens != 9 {
		t.Fatalf("%s %+v", out.RawUsage, out.Usage)
	}
}

func TestUnfinishedBlocks(t *testing.T) {
	a := &assembler{}
	for i, event := range []string{opening,
		`{"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":"","signature":""}}`,
		`{"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"hm"}}`,
		`{"type":"content_block_start","index":1,"content_block":{"type":"text","text":""}}`,
		`{"type":"content_block_start","index":2,"content_block":{"type":"text","text":""}}`,
		`{"type":"content_block_delta","index":2,"delta":{"type":"text_delta","text":"half a"}}`,
		`{"type":"content_block_start","index":3,"content_block":{"type":"tool_use","id":"t","name":"n","input":{}}}`,
		`{"type":"content_block_delta","index":3,"delta":{"type":"input_json_delta","partial_json":"{\"a"}}`} {
		if err := a.feed([]byte(event)); err != nil {
			t.Fatalf("%d: %v", i, err)
		}
	}
	out := a.answer()
	if len(out.Blocks) != 1 || string(out.Blocks[0]) != `{"type":"text","text":"half a"}` || out.Text != "half a" {
		t.Fatalf("%s", out.Blocks)
	}
	if got := a.generated(); got != `hmhalf a{"a` {
		t.Fatal(got)
	}
}

func TestMalformedStreams(t *testing.T) {
	start := `{"type":"content_block_start","index":0,"content_block":{"type":"tool_use","input":{}}}`
	for claim, events := range map[string][]string{
		"no JSON":                 {`oops`},
		"a list":                  {`[]`},
		"block before the start":  {start},
		"end before the start":    {`{"type":"message_stop"}`},
		"two starts":              {opening, opening},
		"two blocks of one index": {opening, start, start},
		"delta without a block":   {opening, `{"type":"content_block_delta","index":4,"delta":{}}`},
		"delta without an index":  {opening, start, `{"type":"content_block_delta","delta":{}}`},
		"delta after the end":     {opening, start, `{"type":"content_block_stop","index":0}`, `{"type":"content_block_delta","index":0,"delta":{}}`},
		"input that is no JSON":   {opening, start, `{"type":"content_block_delta","index":0,"delta":{"type":"input_json_delta","partial_json":"{"}}`, `{"type":"content_block_stop","index":0}`},
		"a block that is text":    {opening, `{"type":"content_block_start","index":0,"content_block":"text"}`},
	} {
		t.Run(claim, func(t *testing.T) {
			a := &assembler{}
			var err error
			for _, event := range events {
				if err != nil {
					t.Fatalf("too early: %v", err)
				}
				err = a.feed([]byte(event))
			}
			if !errors.Is(err, errMalformed) {
				t.Fatal(err)
			}
		})
	}
}

func TestAnswerIsBounded(t *testing.T) {
	a := &assembler{}
	if err := a.feed([]byte(opening)); err != nil {
		t.Fatal(err)
	}
	if err := a.feed([]byte(`{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}`)); err != nil {
		t.Fatal(err)
	}
	piece := fmt.Appendf(nil, `{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"%s"}}`, strings.Repeat("x", 1<<20))
	for range 40 {
		if err := a.feed(piece); err != nil {
			if !errors.Is(err, errMalformed) {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatal("an endless answer was taken")
}

// FuzzAssembler feeds lines as events. Whatever comes: no panic, the text is what the sink heard, the blocks are
// JSON, and the bill can be written.
func FuzzAssembler(f *testing.F) {
	f.Add(opening + "\n" + `{"type":"content_block_start","index":0,"content_block":{"type":"text","text":"a"}}` + "\n" +
		`{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"b"}}` + "\n" + `{"type":"content_block_stop","index":0}` + "\n" + `{"type":"message_stop"}`)
	f.Add(opening + "\n" + `{"type":"content_block_start","index":0,"content_block":{"type":"x","a":"b","l":[]}}` + "\n" +
		`{"type":"content_block_delta","index":0,"delta":{"type":"y","a":"c","l":[1],"a":1}}`)
	f.Add(`{"type":"message_start","message":{"usage":{"input_tokens":"x"}}}` + "\n" + `{"type":"message_delta","delta":null,"usage":{"output_tokens":5}}`)
	f.Add(`{"type":"error","error":{"type":"overloaded_error"}}`)
	prices := DefaultPrices()
	f.Fuzz(func(t *testing.T, lines string) {
		var heard strings.Builder
		a := &assembler{sink: func(s string) { heard.WriteString(s) }}
		for line := range strings.Lines(lines) {
			if a.feed([]byte(line)) != nil {
				break
			}
		}
		out := a.answer()
		if out.Text != heard.String() {
			t.Fatalf("answer %q, heard %q", out.Text, heard.String())
		}
		for _, block := range out.Blocks {
			if !json.Valid(block) {
				t.Fatalf("%q", block)
			}
		}
		if out.RawUsage != nil && !json.Valid(out.RawUsage) {
			t.Fatalf("%q", out.RawUsage)
		}
		prices.Cost("claude-opus-5-5", out.RawUsage)
	})
}
