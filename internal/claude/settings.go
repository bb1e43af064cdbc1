package claude

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"sort"

	"claude-memory-backend/internal/fault"
)

// The settings of a conversation that reach the provider. Everything else is refused when written and ignored when
// sent: the model, the token limit, the stream flag and the abuse metadata belong to the server.
//
//	temperature     number 0 to 1
//	top_p           number 0 to 1
//	top_k           whole number, 0 or more
//	stop_sequences  up to 16 non-empty strings
//	effort          low, medium, high, xhigh, max     (sent as output_config.effort)
//	service_tier    auto, standard_only
//	thinking        {type, budget_tokens, display, block_binding}
//
// New models refuse some of them (non-default temperature, thinking of type enabled); that is the provider's word at
// answer time, since it depends on the model and moves with every release.
var settingChecks = []struct {
	key   string
	check func(json.RawMessage) string
}{
	{"temperature", numberBetween(0, 1)},
	{"top_p", numberBetween(0, 1)},
	{"top_k", wholeFrom(0)},
	{"stop_sequences", checkStops},
	{"effort", oneOf("low", "medium", "high", "xhigh", "max")},
	{"service_tier", oneOf("auto", "standard_only")},
	{"thinking", nil}, // has fields of its own, see checkThinking
}

// bindingBeta is the beta header without which the provider refuses thinking.block_binding.
const bindingBeta = "thinking-binding-controls-2026-08-01"

const maxSettingsBytes = 16 << 10

// ValidateSettings checks the settings of a conversation before they are stored. It reports every problem at once, as
// a fault of class Invalid with locations such as "settings.thinking.type". No settings at all are valid.
func ValidateSettings(raw json.RawMessage) error {
	const op = "claude.ValidateSettings"
	if len(bytes.TrimSpace(raw)) == 0 || bytes.Equal(bytes.TrimSpace(raw), []byte("null")) {
		return nil
	}
	if len(raw) > maxSettingsBytes {
		return fault.BadInput(op, "settings", fmt.Sprintf("must be at most %d bytes", maxSettingsBytes))
	}
	var all map[string]json.RawMessage
	if json.Unmarshal(raw, &all) != nil {
		return fault.BadInput(op, "settings", "must be a JSON object")
	}
	var fields []fault.Field
	keys := make([]string, 0, len(all))
	for key := range all {
		keys = append(keys, key)
	}
	sort.Strings(keys)
	for _, key := range keys {
		at := "settings." + key
		i := slices.IndexFunc(settingChecks, func(s struct {
			key   string
			check func(json.RawMessage) string
		}) bool {
			return s.key == key
		})
		switch {
		case i < 0:
			fields = append(fields, fault.Field{Location: at, Message: "is not a known setting"})
		case key == "thinking":
			fields = append(fields, checkThinking(at, all[key])...)
		default:
			if problem := settingChecks[i].check(all[key]); problem != "" {
				fields = append(fields, fault.Field{Location: at, Message: problem})
			}
		}
	}
	if len(fields) == 0 {
		return nil
	}
	return &fault.Error{Class: fault.Invalid, Op: op, Code: "invalid_input", Message: "the settings are not valid",
		Fields: fields}
}

func checkThinking(at string, raw json.RawMessage) []fault.Field {
	var all map[string]json.RawMessage
	if json.Unmarshal(raw, &all) != nil || all == nil {
		return []fault.Field{{Location: at, Message: "must be an object"}}
	}
	var fields []fault.Field
	say := func(key, problem string) {
		if problem != "" {
			fields = append(fields, fault.Field{Location: at + "." + key, Message: problem})
		}
	}
	keys := make([]string, 0, len(all))
	for key := range all {
		keys = append(keys, key)
	}
	sort.Strings(keys)
	for _, key := range keys {
		switch key {
		case "type":
			say(key, oneOf("adaptive", "enabled", "disabled", "between_tools")(all[key]))
		case "budget_tokens":
			say(key, wholeFrom(1024)(all[key]))
		case "display":
			say(key, oneOf("summarized", "omitted", "updates")(all[key]))
		case "block_binding":
			var binding map[string]json.RawMessage
			if json.Unmarshal(all[key], &binding) != nil || len(binding) != 1 || binding["prefix_mismatch_behavior"] == nil {
				say(key, "must be an object with the one field prefix_mismatch_behavior")
				continue
			}
			say(key+".prefix_mismatch_behavior", oneOf("error", "drop_block")(binding["prefix_mismatch_behavior"]))
		default:
			say(key, "is not a known setting")
		}
	}
	if all["type"] == nil {
		say("type", "is required")
	}
	if string(all["type"]) == `"enabled"` && all["budget_tokens"] == nil {
		say("budget_tokens", "is required with type enabled")
	}
	return fields
}

func numberBetween(low, high float64) func(json.RawMessage) string {
	return func(raw json.RawMessage) string {
		var n *float64
		if json.Unmarshal(raw, &n) != nil || n == nil || *n < low || *n > high {
			return fmt.Sprintf("must be a number from %g to %g", low, high)
		}
		return ""
	}
}

func wholeFrom(low int64) func(json.RawMessage) string {
	return func(raw json.RawMessage) string {
		var n *int64
		if json.Unmarshal(raw, &n) != nil || n == nil || *n < low {
			return fmt.Sprintf("must be a whole number of at least %d", low)
		}
		return ""
	}
}

func oneOf(words ...string) func(json.RawMessage) string {
	return func(raw json.RawMessage) string {
		var word string
		if json.Unmarshal(raw, &word) != nil || !slices.Contains(words, word) {
			return fmt.Sprintf("must be one of %v", words)
		}
		return ""
	}
}

func checkStops(raw json.RawMessage) string {
	var stops []string
	bad := json.Unmarshal(raw, &stops) != nil || stops == nil || len(stops) > 16
	for _, stop := range stops {
		bad = bad || stop == "" || len(stop) > 256
	}
	if bad {
		return "must be at most 16 non-empty strings of at most 256 bytes"
	}
	return ""
}

// settings are the allowed keys of a conversation's settings, each in the bytes in which it was stored.
type settings map[string]json.RawMessage

// decodeSettings keeps what is known and valid. What an older version let in must not stop a conversation.
func decodeSettings(raw json.RawMessage) settings {
	var all map[string]json.RawMessage
	if json.Unmarshal(raw, &all) != nil {
		return nil
	}
	kept := settings{}
	for _, s := range settingChecks {
		value, ok := all[s.key]
		if !ok {
			continue
		}
		if s.key == "thinking" && len(checkThinking("", value)) == 0 || s.check != nil && s.check(value) == "" {
			kept[s.key] = value
		}
	}
	return kept
}

// write adds the settings to the body in the fixed order of settingChecks and returns the beta headers they need.
func (s settings) write(b *bytes.Buffer) (betas []string) {
	for _, known := range settingChecks {
		value, ok := s[known.key]
		if !ok {
			continue
		}
		if known.key == "effort" {
			b.WriteString(`,"output_config":{"effort":`)
			b.Write(value)
			b.WriteByte('}')
			continue
		}
		b.WriteString(`,"` + known.key + `":`)
		b.Write(value)
		if known.key == "thinking" && bytes.Contains(value, []byte(`"block_binding"`)) {
			betas = append(betas, bindingBeta)
		}
	}
	return betas
}
