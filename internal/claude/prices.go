package claude

import (
	"bytes"
	_ "embed" // prices.json
	"encoding/json"
	"fmt"
	"io"
	"math"
	"math/big"
	"strings"
	"time"

	"claude-memory-backend/internal/conversation"
	"claude-memory-backend/internal/fault"
)

//go:embed prices.json
var embeddedPrices []byte

// Prices is what is known about models: what they cost, how much they take, how they count. It is read-only.
//
// A model is found by its exact id. If there is none, one suffix is taken off: "-latest", or a date as in
// "-20250929". Nothing else matches; a rule by prefix would sell claude-opus-5-5 at the price of claude-opus-5.
type Prices struct {
	asOf   time.Time
	models map[string]*model
	tools  map[string]int64
	geo    map[string]int64
	tier   map[string]int64
}

// rates are micro-USD per million tokens, so that a tenth of a cent per million is still a whole number.
type rates struct {
	Input        int64 `json:"input"`
	Output       int64 `json:"output"`
	CacheWrite5m int64 `json:"cache_write_5m"`
	CacheWrite1h int64 `json:"cache_write_1h"`
	CacheRead    int64 `json:"cache_read"`
}

type model struct {
	ID string `json:"id"`
	rates
	Tiers         []tier `json:"tiers"`
	ContextWindow int    `json:"context_window"`
	MaxOutput     int    `json:"max_output"`
	MinCacheable  int    `json:"min_cacheable"`
	TokenPercent  int    `json:"token_percent"` // tokens for the same text, against the older tokenizer's 100
}

// tier replaces the rates of the whole request when its prompt is longer than the bound.
type tier struct {
	AbovePromptTokens int64 `json:"above_prompt_tokens"`
	rates
}

type priceFile struct {
	AsOf  string           `json:"as_of"`
	Unit  string           `json:"unit"`
	Tools map[string]int64 `json:"server_tools"`
	Geo   map[string]int64 `json:"inference_geo_percent"`
	Tier  map[string]int64 `json:"service_tier_percent"`

	Models []model `json:"models"`
}

// What an unknown model is taken for: the smallest window and the hungriest tokenizer among the models sold.
const (
	unknownWindow       = 200_000
	unknownOutput       = 64_000
	unknownMinCacheable = 4096
	unknownTokenPercent = 135
)

// DefaultPrices are the prices that were known when the program was built.
func DefaultPrices() *Prices {
	p, err := LoadPrices(bytes.NewReader(embeddedPrices))
	if err != nil {
		panic(err) // the file is part of the program and a test loads it
	}
	return p
}

// LoadPrices reads a price file of the operator's. It reports every problem of the file at once.
func LoadPrices(r io.Reader) (*Prices, error) {
	const op = "claude.LoadPrices"
	dec := json.NewDecoder(io.LimitReader(r, 1<<20))
	dec.DisallowUnknownFields()
	var file priceFile
	if err := dec.Decode(&file); err != nil {
		return nil, fault.BadInput(op, "prices", "is not a readable price file: "+err.Error())
	}
	var fields []fault.Field
	say := func(at, problem string) { fields = append(fields, fault.Field{Location: at, Message: problem}) }

	asOf, err := time.Parse(time.DateOnly, file.AsOf)
	if err != nil {
		say("as_of", "must be a date such as 2026-10-20")
	}
	if len(file.Models) == 0 {
		say("models", "must name at least one model")
	}
	p := &Prices{asOf: asOf, models: make(map[string]*model, len(file.Models)), tools: file.Tools, geo: file.Geo,
		tier: file.Tier}
	for i := range file.Models {
		m := &file.Models[i]
		at := fmt.Sprintf("models[%d]", i)
		if m.ID == "" || len(m.ID) > 128 {
			say(at+".id", "must be a model id")
		}
		if p.models[m.ID] != nil {
			say(at+".id", "is there twice")
		}
		p.models[m.ID] = m
		m.rates.check(at, say)
		last := int64(0)
		for j, t := range m.Tiers {
			where := fmt.Sprintf("%s.tiers[%d]", at, j)
			if t.AbovePromptTokens <= last {
				say(where+".above_prompt_tokens", "must be above 0 and above the tier before")
			}
			last = t.AbovePromptTokens
			t.rates.check(where, say)
		}
		for _, size := range []struct {
			key       string
			value     int
			low, high int
		}{
			{"context_window", m.ContextWindow, 1000, 1 << 30},
			{"max_output", m.MaxOutput, 1, 1 << 30},
			{"min_cacheable", m.MinCacheable, 0, 1 << 30},
			{"token_percent", m.TokenPercent, 10, 1000},
		} {
			if size.value < size.low || size.value > size.high {
				say(at+"."+size.key, fmt.Sprintf("must be from %d to %d", size.low, size.high))
			}
		}
	}
	for key, price := range file.Tools {
		if price < 0 || price > maxRate {
			say("server_tools."+key, "must not be negative or absurd")
		}
	}
	for name, table := range map[string]map[string]int64{"inference_geo_percent": file.Geo, "service_tier_percent": file.Tier} {
		for key, percent := range table {
			if percent < 1 || percent > 1000 {
				say(name+"."+key, "must be from 1 to 1000")
			}
		}
	}
	if len(fields) > 0 {
		return nil, &fault.Error{Class: fault.Invalid, Op: op, Code: "invalid_input",
			Message: "the price file is not valid", Fields: fields}
	}
	return p, nil
}

const maxRate = 1_000_000_000 // a thousand dollars per million tokens

func (r rates) check(at string, say func(at, problem string)) {
	for key, value := range map[string]int64{"input": r.Input, "output": r.Output, "cache_write_5m": r.CacheWrite5m,
		"cache_write_1h": r.CacheWrite1h, "cache_read": r.CacheRead} {
		if value < 0 || value > maxRate {
			say(at+"."+key, fmt.Sprintf("must be from 0 to %d micro-USD per million tokens", int64(maxRate)))
		}
	}
}

// AsOf is the day of the price file.
func (p *Prices) AsOf() time.Time { return p.asOf }

func (p *Prices) find(id string) *model {
	if m := p.models[id]; m != nil {
		return m
	}
	if base, ok := strings.CutSuffix(id, "-latest"); ok {
		return p.models[base]
	}
	if cut := len(id) - len("-20250929"); cut > 0 && id[cut] == '-' && strings.Trim(id[cut+1:], "0123456789") == "" {
		return p.models[id[:cut]]
	}
	return nil
}

// Known reports whether the model has a price.
func (p *Prices) Known(id string) bool { return p.find(id) != nil }

// Models lists the ids of the file.
func (p *Prices) Models() []string {
	ids := make([]string, 0, len(p.models))
	for id := range p.models {
		ids = append(ids, id)
	}
	return ids
}

// ContextWindow is how many tokens prompt and answer may have together; cautious for an unknown model.
func (p *Prices) ContextWindow(id string) int {
	if m := p.find(id); m != nil {
		return m.ContextWindow
	}
	return unknownWindow
}

// MaxOutput is how many tokens an answer may have; cautious for an unknown model.
func (p *Prices) MaxOutput(id string) int {
	if m := p.find(id); m != nil {
		return m.MaxOutput
	}
	return unknownOutput
}

// MinCacheable is the shortest prefix that the provider caches for the model.
func (p *Prices) MinCacheable(id string) int {
	if m := p.find(id); m != nil {
		return m.MinCacheable
	}
	return unknownMinCacheable
}

// usage is the provider's usage object as far as money depends on it.
type usage struct {
	conversation.Usage
	Model    string `json:"model"` // in an iteration that another model answered
	Creation *struct {
		Write5m int64 `json:"ephemeral_5m_input_tokens"`
		Write1h int64 `json:"ephemeral_1h_input_tokens"`
	} `json:"cache_creation"`
	Iterations  []usage          `json:"iterations"`
	ServerTools map[string]int64 `json:"server_tool_use"`
	Geo         string           `json:"inference_geo"`
	ServiceTier string           `json:"service_tier"`
}

// parseUsage reads leniently: a field of an unexpected type counts as absent, it must not cost an answer.
func parseUsage(raw json.RawMessage) usage {
	var u usage
	if json.Unmarshal(raw, &u) == nil {
		return u
	}
	u = usage{}
	fields, err := parseMembers(raw)
	if err != nil {
		return u
	}
	for _, f := range fields {
		one := members{f}
		before := u
		if json.Unmarshal(one.raw(), &u) != nil {
			u = before
		}
	}
	return u
}

func (u usage) top() conversation.Usage { return u.Usage }

// Cost prices one usage object. The sum of all parts is exact and is rounded once, at the end, half a micro-dollar
// up. priced is false, and the cost 0, when the model is not in the file.
//
// Where the provider lists iterations, they are what is billed: the totals leave out what a compaction consumed.
// Each iteration moves to the tier of its own prompt.
func (p *Prices) Cost(id string, raw json.RawMessage) (microUSD int64, priced bool) {
	u := parseUsage(raw)
	parts := []usage{u}
	if len(u.Iterations) > 0 {
		parts = u.Iterations
	}
	total := new(big.Int) // in millionths of a micro-dollar
	for _, part := range parts {
		m := p.find(id)
		if part.Model != "" && p.find(part.Model) != nil {
			m = p.find(part.Model)
		}
		if m == nil {
			return 0, false
		}
		m.add(total, part)
	}
	percent(total, p.geo[u.Geo])
	percent(total, p.tier[u.ServiceTier])
	for tool, uses := range u.ServerTools {
		addProduct(total, uses, p.tools[tool]*1_000_000)
	}
	const unit = 1_000_000
	total.Add(total, big.NewInt(unit/2))
	total.Quo(total, big.NewInt(unit))
	if !total.IsInt64() {
		return math.MaxInt64, true
	}
	return total.Int64(), true
}

func (m *model) add(total *big.Int, u usage) {
	write5m, write1h := u.CacheCreationInputTokens, int64(0)
	if u.Creation != nil {
		write1h = u.Creation.Write1h
		// What the split does not explain is taken at the cheaper, usual lifetime.
		write5m = max(u.Creation.Write5m, write5m-write1h)
	}
	prompt := new(big.Int)
	for _, n := range []int64{u.InputTokens, u.CacheReadInputTokens, write5m, write1h} {
		prompt.Add(prompt, big.NewInt(max(0, n)))
	}
	r := m.rates
	for _, t := range m.Tiers {
		if prompt.Cmp(big.NewInt(t.AbovePromptTokens)) > 0 {
			r = t.rates
		}
	}
	addProduct(total, u.InputTokens, r.Input)
	addProduct(total, u.OutputTokens, r.Output)
	addProduct(total, u.CacheReadInputTokens, r.CacheRead)
	addProduct(total, write5m, r.CacheWrite5m)
	addProduct(total, write1h, r.CacheWrite1h)
}

func addProduct(total *big.Int, n, price int64) {
	if n > 0 && price > 0 {
		total.Add(total, new(big.Int).Mul(big.NewInt(n), big.NewInt(price)))
	}
}

// percent scales; it rounds down below a millionth of a micro-dollar, which the final rounding swallows.
func percent(total *big.Int, p int64) {
	if p > 0 && p != 100 {
		total.Mul(total, big.NewInt(p))
		total.Quo(total, big.NewInt(100))
	}
}
