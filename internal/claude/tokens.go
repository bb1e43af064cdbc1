package claude

import "encoding/json"

// Estimates before a call, when nobody has counted yet. They err on the high side: a prompt that is estimated too
// long is summarised a little early, one that is estimated too short is refused by the provider.

const (
	imageTokens    = 1600 // an image at the size the provider scales it to
	documentTokens = 2500 // the least a document costs, about a page as text and picture
	blockOverhead  = 4    // braces of a block
)

// EstimateTokens estimates how many tokens the model makes of a text. It depends on the characters only, costs one
// pass over the text and allocates nothing.
func (p *Prices) EstimateTokens(model, text string) int {
	return p.scale(model, weigh(text))
}

// EstimateBlocks estimates the tokens of content blocks, of any kind.
func (p *Prices) EstimateBlocks(model string, blocks []json.RawMessage) int {
	var weight, fixed int64
	for _, raw := range blocks {
		w, f := weighBlock(raw, 0)
		weight += w
		fixed += f
	}
	return p.scale(model, weight) + int(fixed)
}

func (p *Prices) scale(model string, weight int64) int {
	percent := int64(unknownTokenPercent)
	if m := p.find(model); m != nil {
		percent = int64(m.TokenPercent)
	}
	const full = 1000 * 100 // thousandths of a token, times percent
	return int((weight*percent + full - 1) / full)
}

// weigh sums thousandths of a token. The weights are those of the older tokenizer, whose English runs near four
// characters to a token; the model's percentage does the rest.
func weigh(text string) int64 {
	var sum int64
	for _, r := range text {
		switch {
		case r >= 'a' && r <= 'z', r == ' ':
			sum += 250
		case r >= 'A' && r <= 'Z':
			sum += 300
		case r < 0x80: // digits, punctuation, line ends
			sum += 450
		case r < 0x250: // Latin with marks
			sum += 450
		case r < 0x1100: // Greek, Cyrillic, Hebrew, Arabic, Indic
			sum += 650
		case r < 0x2e80: // further alphabets, punctuation, symbols, arrows
			sum += 1000
		case r < 0x10000: // CJK, kana, Hangul, full-width forms
			sum += 1200
		default: // emoji and rare ideographs
			sum += 2500
		}
	}
	return sum
}

// weighBlock returns a weight and a number of tokens that no tokenizer scales.
func weighBlock(raw json.RawMessage, depth int) (weight, fixed int64) {
	var b struct {
		Type     string `json:"type"`
		Text     string `json:"text"`
		Thinking string `json:"thinking"`
		Data     string `json:"data"`
		Source   struct {
			Type string          `json:"type"`
			Data json.RawMessage `json:"data"`
		} `json:"source"`
		Content json.RawMessage `json:"content"`
	}
	if depth > 8 || json.Unmarshal(raw, &b) != nil {
		return weigh(string(raw)), blockOverhead
	}
	switch b.Type {
	case "text":
		return weigh(b.Text), blockOverhead
	case "thinking":
		return weigh(b.Thinking), blockOverhead
	case "redacted_thinking":
		return int64(len(b.Data)) * 250, blockOverhead
	case "image":
		return 0, imageTokens
	case "document":
		if b.Source.Type == "text" {
			return weigh(string(b.Source.Data)), blockOverhead
		}
		// Base64 of a PDF: pages compress differently, so this is the roughest number here.
		return 0, max(documentTokens, int64(len(b.Source.Data))/25)
	case "tool_result":
		var text string
		if json.Unmarshal(b.Content, &text) == nil {
			return weigh(text), 5 * blockOverhead
		}
		var inner []json.RawMessage
		if json.Unmarshal(b.Content, &inner) == nil {
			fixed = 5 * blockOverhead
			for _, item := range inner {
				w, f := weighBlock(item, depth+1)
				weight, fixed = weight+w, fixed+f
			}
			return weight, fixed
		}
	}
	return weigh(string(raw)), blockOverhead
}
