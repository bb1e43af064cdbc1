package conversation

import (
	"context"
	"time"

	"claude-memory-backend/internal/fault"
)

// flushPatience is after how many times FlushAge a flush under way counts as late, so that the spool takes what it carries,
// and how often a database that does not take text is tried.
const flushPatience = 4

// flusher stores what a running turn has said, at least every FlushAge or FlushSize, and renews the turn's lease. What the
// database does not take goes to the spool in the same rhythm, until it takes all of it.
//
//	database ── a flush fails, or takes too long ──► spool ── a flush has all of the text ──► database
//	                                                  └── somebody else has ended the turn ──► spool for good
//
// Only its own goroutine touches it.
type flusher struct {
	j *job

	stored  extent // what the database is known to have
	spooled extent // up to where the spool has it; zero: nothing
	away    bool   // the database does not take it: the spool does
	unsure  bool   // a flush may have been stored without our knowing
	lost    bool   // the turn has ended without us, by a guess
	said    string // the code of the spool's last refusal, which is logged once
	refused time.Time
	sent    *flight // the flush under way
	tried   time.Time

	age     *time.Timer
	waiting bool // age runs
	late    *time.Timer
}

// extent is how much of a text.
type extent struct{ bytes, units int }

// flight is one flush.
type flight struct {
	until  time.Time
	landed chan landing
}

type landing struct {
	to   extent // up to where it carried the text
	held bool
	err  error
}

// flush runs until quit. away reports whether the database did not take text at the end.
func (j *job) flush(quit <-chan struct{}) (away bool) {
	f := &flusher{j: j, stored: extent{len(j.prefix), utf16Len(j.prefix)}, age: time.NewTimer(time.Hour), late: time.NewTimer(time.Hour)}
	f.age.Stop()
	f.late.Stop()
	defer f.age.Stop()
	defer f.late.Stop()
	renew := time.NewTicker(j.engine.Config.Lease / 3)
	defer renew.Stop()
	for {
		var landed chan landing
		if f.sent != nil {
			landed = f.sent.landed
		}
		select {
		case <-quit:
			if landed != nil && !f.away {
				select {
				case l := <-landed:
					f.settle(l)
				case <-f.late.C:
					f.away = true
				}
			}
			return f.away
		case <-renew.C:
			f.try()
		case <-f.age.C:
			f.waiting = false
			f.due()
		case <-f.late.C:
			f.away = true
			f.due()
		case l := <-landed:
			f.settle(l)
			f.arm()
		case <-j.wake:
			f.arm()
		}
	}
}

// arm sees to it that new text is dealt with in time.
func (f *flusher) arm() {
	j := f.j
	safe := f.stored.bytes
	if f.away {
		safe = max(safe, f.spooled.bytes)
	}
	j.mu.Lock()
	pending, since := len(j.text)-safe, j.since
	j.mu.Unlock()
	switch {
	case pending <= 0 || f.sent != nil && !f.away:
	case pending >= j.engine.FlushSize:
		f.due()
	case !f.waiting:
		f.waiting = true
		// Not from now: the piece may have waited for a slow flush already.
		f.age.Reset(max(0, j.engine.FlushAge-j.engine.Now().Sub(since)))
	}
}

func (f *flusher) patience() time.Duration { return flushPatience * f.j.engine.FlushAge }

// due puts the text where it can be put.
func (f *flusher) due() {
	if f.away {
		f.keep()
		if time.Since(f.tried) < f.patience() {
			return
		}
	}
	f.try()
}

// rest is what was said behind from, and where that ends. New pieces are of a later flush.
func (j *job) rest(from extent) (text string, to extent) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.since = time.Time{}
	to = extent{len(j.text), j.units}
	return string(j.text[from.bytes:to.bytes]), to
}

// try offers the database all that it does not have, unless it is still busy with the last offer. What that is, is decided
// when the transaction has its turn: behind others, what is said while it waits goes along (decision 0078).
func (f *flusher) try() {
	if f.sent != nil || f.lost {
		return
	}
	f.age.Stop()
	f.waiting = false
	f.tried = time.Now()
	j, e, from, unsure := f.j, f.j.engine, f.stored, f.unsure
	sent := &flight{until: e.lease(), landed: make(chan landing, 1)}
	f.sent = sent
	f.late.Reset(f.patience())
	e.wg.Add(1) // the job's own keeps the count above zero
	go func() {
		defer e.wg.Done()
		// A connection that is half dead must not outlast the lease. The turn's own context is not used: stopping a turn is
		// no reason to break a connection.
		ctx, cancel := context.WithTimeout(e.life, e.Config.Lease/2)
		defer cancel()
		l := landing{to: from}
		if unsure {
			m, err := j.service.store.FindMessage(ctx, j.conv.ID, j.x.Assistant.ID)
			if err != nil {
				l.err = err
				sent.landed <- l
				return
			}
			from = extent{len(m.Content), utf16Len(m.Content)}
			if from.bytes > len(j.soFar()) { // longer than all that was said: whoever wrote that has ended the turn
				sent.landed <- l
				return
			}
		}
		l.held, l.err = j.service.store.FlushTurn(ctx, *j.x.Turn, from.units, func() (text string) {
			text, l.to = j.rest(from)
			return text
		}, sent.until)
		sent.landed <- l
	}()
}

// settle deals with what became of a flush.
func (f *flusher) settle(l landing) {
	j, sent := f.j, f.sent
	f.sent = nil
	f.late.Stop()
	if fault.Is(l.err, fault.NotFound) {
		j.cancel(errLost) // the message is gone, and the turn with it
		return
	}
	if l.err != nil {
		if !f.unsure {
			j.engine.Log.Warn("turn not flushed", "code", fault.CodeOf(l.err), "turn", j.turn)
		}
		f.away, f.unsure = true, true
		f.keep()
		return
	}
	if !l.held {
		f.ended()
		return
	}
	f.stored, f.unsure = l.to, false
	_ = j.service.tenant.Hint(context.WithoutCancel(j.ctx), sent.until) // hints may be lost
	switch {
	case f.spooled.bytes > f.stored.bytes: // it was slow, and more was said meanwhile
		f.try()
	case f.spooled.bytes > 0:
		j.unspool()
		f.spooled, f.away = extent{}, false
	default:
		f.away = false
	}
}

// ended is called when a flush found that the turn is not as it should be. When somebody only guessed that this server is
// gone, the answer is still worth having: the spool keeps it, and its end will replace the guess.
func (f *flusher) ended() {
	j := f.j
	ctx, cancel := context.WithTimeout(j.engine.life, j.engine.Config.Lease/2)
	defer cancel()
	t, _, _, err := j.service.store.FindTurn(ctx, j.conv.ID, j.turn)
	switch {
	case fault.Is(err, fault.Unavailable), err == nil && !t.State.Final() && t.Node == j.engine.node:
		f.away, f.unsure = true, true // a flush that had no answer has been stored since: the next one looks
	case err == nil && guessed(t) && t.State == Stopped: // somebody wanted that, and we did not hear it
		f.lost = true
		j.cancel(errStopped)
		return
	case err != nil || !guessed(t) || j.service.spool == nil:
		j.cancel(errLost)
		return
	default:
		f.lost, f.away = true, true
	}
	f.keep()
}

// keep puts all that the database does not have into the spool.
func (f *flusher) keep() {
	j := f.j
	if j.service.spool == nil {
		return
	}
	from := f.stored
	if f.spooled.bytes > from.bytes {
		from = f.spooled
	}
	// After a refusal not at once again: all that is missing would be sealed anew for every piece.
	if time.Since(f.refused) < f.patience() {
		return
	}
	text, to := j.rest(from)
	if text == "" {
		return
	}
	err := j.service.spool.Append(j.turn, spooled{At: from.units, Text: text}.encode())
	if err == nil {
		f.spooled = to
		return
	}
	f.refused = time.Now()
	if code := fault.CodeOf(err); code != f.said {
		f.said = code
		j.engine.Log.Warn("text of a turn kept in memory only: the spool does not take it", "code", code, "turn", j.turn)
	}
}
