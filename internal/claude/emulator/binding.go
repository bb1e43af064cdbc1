package emulator

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
)

// A signature holds three parts: a code over the thinking itself, a code over the prefix it was made behind, and the
// beginning of the signature before it in the conversation. The last one notices thinking taken out of the middle.
const (
	codeLen   = 16
	linkLen   = 8
	signedLen = 2*codeLen + linkLen
)

func (s *Server) code(parts ...[]byte) []byte {
	h := hmac.New(sha256.New, s.opts.Secret)
	for _, part := range parts {
		var size [8]byte
		for i, n := 0, len(part); i < 8; i, n = i+1, n>>8 {
			size[i] = byte(n)
		}
		h.Write(size[:])
		h.Write(part)
	}
	return h.Sum(nil)[:codeLen]
}

// sign makes the signature of thinking that is said now, after the whole request.
func (s *Server) sign(r *request, thinking string, link []byte) string {
	prefix := r.boundPrefix(len(r.Messages))
	sig := append(s.code([]byte("text"), []byte(thinking)), s.code([]byte("prefix"), []byte(r.facts.id), prefix)...)
	return base64.StdEncoding.EncodeToString(append(sig, pad(link)...))
}

func pad(link []byte) []byte {
	out := make([]byte, linkLen)
	copy(out, link)
	return out
}

// boundPrefix is the hash of everything before a message that thinking is bound to: tools, system, blocks. Thinking
// itself is left out, since a client may drop it; cache marks, effort and limits are no part of it either.
func (r *request) boundPrefix(before int) []byte {
	h := sha256.New()
	for _, seg := range r.segments {
		if seg.message >= before || seg.isThinking() {
			continue
		}
		var value any
		_ = json.Unmarshal(seg.raw, &value) // split has parsed it
		canonical, _ := json.Marshal(value)
		h.Write([]byte(seg.role))
		h.Write([]byte{0})
		h.Write(canonical)
		h.Write([]byte{0})
	}
	return h.Sum(nil)
}

// transformation reports a block that was taken out.
type transformation struct {
	Type   string `json:"type"`
	Path   string `json:"path"`
	Reason string `json:"reason"`
}

// checkThinking verifies every thinking block of the request. Altered blocks are always an error; blocks behind
// another prefix are an error or are dropped, as the request or the organisation wants it.
func (s *Server) checkThinking(r *request) ([]transformation, *apiError) {
	mode := s.opts.Binding
	var settings struct {
		Binding struct {
			Mode string `json:"prefix_mismatch_behavior"`
		} `json:"block_binding"`
	}
	if json.Unmarshal(r.Thinking, &settings) == nil && settings.Binding.Mode != "" {
		mode = settings.Binding.Mode
	}
	var done []transformation
	var link []byte
	for i := range r.segments {
		seg := &r.segments[i]
		if !seg.isThinking() {
			continue
		}
		var b struct{ Thinking, Signature, Data string }
		_ = json.Unmarshal(seg.raw, &b) // split has parsed it
		signature := b.Signature
		if seg.kind == "redacted_thinking" {
			signature = b.Data
		}
		sig, err := base64.StdEncoding.DecodeString(signature)
		if err != nil || len(sig) != signedLen || subtle.ConstantTimeCompare(sig[:codeLen], s.code([]byte("text"), []byte(b.Thinking))) != 1 {
			return nil, invalid("%s: Invalid `signature` in `thinking` block. `thinking` or `redacted_thinking` blocks in the latest assistant message cannot be modified.", seg.path)
		}
		want := s.code([]byte("prefix"), []byte(r.facts.id), r.boundPrefix(seg.message))
		fits := subtle.ConstantTimeCompare(sig[codeLen:2*codeLen], want) == 1
		if link != nil && subtle.ConstantTimeCompare(sig[2*codeLen:], link) != 1 {
			fits = false
		}
		link = pad(sig)
		if fits || !r.facts.bound {
			continue
		}
		if mode != "drop_block" {
			return nil, invalid("%s: Invalid `signature` in `thinking` block. The block is bound to a different conversation.", seg.path)
		}
		seg.dropped = true
		done = append(done, transformation{Type: "thinking_dropped", Path: seg.path, Reason: "prefix_binding_mismatch"})
	}
	return done, nil
}

// lastLink is the beginning of the newest signature of the request, which the next one refers to.
func (r *request) lastLink() []byte {
	for i := len(r.segments) - 1; i >= 0; i-- {
		seg := r.segments[i]
		if !seg.isThinking() || seg.dropped {
			continue
		}
		var b struct{ Signature, Data string }
		_ = json.Unmarshal(seg.raw, &b) // split has parsed it
		sig, _ := base64.StdEncoding.DecodeString(b.Signature + b.Data)
		return sig
	}
	return nil
}
