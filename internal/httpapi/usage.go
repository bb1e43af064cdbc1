package httpapi

// holdingsView is what an account keeps, and what it may keep and ask.
type holdingsView struct {
	Messages int64 `json:"messages"`
	Bytes    int64 `json:"bytes" doc:"Of text: projects, conversations, complete messages, and system prompts as they were sent"`
	Limits   struct {
		Messages *int64 `json:"messages" doc:"null: no limit"`
		Bytes    *int64 `json:"bytes" doc:"null: no limit"`
	} `json:"limits"`
	Requests requestLimit `json:"requests"`
}

// requestLimit is how many requests of an account are let through.
type requestLimit struct {
	Limit         *int `json:"limit" doc:"Within the window; null: no limit"`
	WindowSeconds int  `json:"window_seconds"`
}

type holdingsAnswer struct{ Body holdingsView }

func (s *Server) usage(x *exchange, _ *probe) (*holdingsAnswer, error) {
	ws, err := x.workspace()
	if err != nil {
		return nil, err
	}
	used, limits, err := ws.Usage(x.ctx)
	if err != nil {
		return nil, err
	}
	out := &holdingsAnswer{holdingsView{Messages: used.Messages, Bytes: used.Bytes, Requests: requestLimit{WindowSeconds: 60}}}
	out.Body.Limits.Messages, out.Body.Limits.Bytes = orNone(limits.Messages), orNone(limits.Bytes)
	if s.limits.on {
		n := s.cfg.PerAccount.PerMinute
		out.Body.Requests.Limit = &n
	}
	return out, nil
}
