package httpapi

import (
	"time"

	"claude-memory-backend/internal/audit"
)

type auditList struct {
	Call
	Action  string    `query:"action" maxLength:"100" doc:"Exact, or a prefix ending in .*" example:"conversation.*"`
	Subject string    `query:"subject" maxLength:"64" doc:"Identifier of what it was about"`
	Outcome string    `query:"outcome" enum:"done,refused"`
	From    time.Time `query:"from" doc:"Not before this time"`
	To      time.Time `query:"to" doc:"Before this time"`
	Limit   int       `query:"limit" minimum:"1" maximum:"200" default:"20"`
	Cursor  string    `query:"cursor" maxLength:"1024" doc:"From next_cursor"`
}

func (s *Server) listAudit(x *exchange, in *auditList) (*paged[entryView], error) {
	ws, err := x.workspace()
	if err != nil {
		return nil, err
	}
	es, next, err := ws.Audit.List(x.ctx, x.actor, audit.Filter{Action: in.Action, Subject: in.Subject,
		Outcome: audit.Outcome(in.Outcome), From: in.From, To: in.To}, in.Cursor, in.Limit)
	if err != nil {
		return nil, err
	}
	return pageOf(es, next, viewEntry), nil
}
