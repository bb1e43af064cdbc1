package emulator

import (
	"crypto/sha256"
	"time"
)

// Usage is what the emulator bills for a request.
type Usage struct {
	InputTokens              int           `json:"input_tokens"`
	CacheCreationInputTokens int           `json:"cache_creation_input_tokens"`
	CacheReadInputTokens     int           `json:"cache_read_input_tokens"`
	CacheCreation            CacheCreation `json:"cache_creation"`
	OutputTokens             int           `json:"output_tokens"`
	ServiceTier              string        `json:"service_tier"`
}

// CacheCreation splits the writes by lifetime.
type CacheCreation struct {
	Ephemeral5m int `json:"ephemeral_5m_input_tokens"`
	Ephemeral1h int `json:"ephemeral_1h_input_tokens"`
}

type cacheKey struct {
	workspace string
	hash      [32]byte
}

type cached struct {
	expires time.Time
	life    time.Duration
}

const lookBack = 20

// plan is the cache's share in one request: what it costs, and what becomes readable once the answer has begun.
type plan struct {
	usage   Usage
	entries map[cacheKey]cached
}

// prefixes returns the running hash after each segment. The model and, before the messages, the settings that
// invalidate them go in; cache_control does not, effort and tool choice do.
func (r *request) prefixes() [][32]byte {
	hash := sha256.Sum256([]byte(r.facts.id))
	mix := func(parts ...[]byte) {
		h := sha256.New()
		h.Write(hash[:])
		for _, part := range parts {
			h.Write(part)
			h.Write([]byte{0})
		}
		h.Sum(hash[:0])
	}
	out := make([][32]byte, len(r.segments))
	entered := false
	for i, seg := range r.segments {
		if seg.message >= 0 && !entered {
			entered = true
			mix(r.Thinking, r.OutputConfig, r.ToolChoice)
		}
		if !seg.dropped {
			mix([]byte(seg.role), seg.raw)
		}
		out[i] = hash
	}
	return out
}

// planCache finds the longest stored prefix and what will be written. The caller commits the entries.
func (s *Server) planCache(workspace string, r *request) plan {
	now := s.opts.Now()
	hashes := r.prefixes()
	sums := make([]int, len(r.segments)+1) // sums[i]: tokens of the first i segments
	for i, seg := range r.segments {
		sums[i+1] = sums[i]
		if !seg.dropped {
			sums[i+1] += seg.tokens
		}
	}
	p := plan{entries: map[cacheKey]cached{}}
	read, long, last := 0, 0, 0 // in segments
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, seg := range r.segments {
		if seg.ttl == "" || sums[i+1] < r.facts.minCacheable {
			continue
		}
		for back := i; back >= 0 && back > i-lookBack; back-- {
			key := cacheKey{workspace, hashes[back]}
			if entry, ok := s.cache[key]; ok && now.Before(entry.expires) {
				read = max(read, back+1)
				p.entries[key] = cached{expires: now.Add(entry.life), life: entry.life} // refreshed by use
				break
			}
		}
		life := 5 * time.Minute
		if seg.ttl == "1h" {
			life, long = time.Hour, i+1
		}
		last = i + 1
		key := cacheKey{workspace, hashes[i]}
		p.entries[key] = cached{expires: now.Add(life), life: life}
	}
	long = max(read, long)
	last = max(long, last)
	p.usage = Usage{CacheReadInputTokens: sums[read], ServiceTier: "standard"}
	p.usage.CacheCreation.Ephemeral1h = sums[long] - sums[read]
	p.usage.CacheCreation.Ephemeral5m = sums[last] - sums[long]
	p.usage.CacheCreationInputTokens = sums[last] - sums[read]
	p.usage.InputTokens = r.tokens() - sums[last]
	return p
}

// commit makes the entries readable: the answer has begun.
func (s *Server) commit(p plan) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, entry := range p.entries {
		s.cache[key] = entry
	}
}
