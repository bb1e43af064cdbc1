package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// progress shows how far something long has come: as a bar on a terminal, elsewhere as a line now and then.
type progress struct {
	out  io.Writer
	bars bool

	mu   sync.Mutex
	unit string
	bar  *progressbar.ProgressBar
	said time.Time
}

// progressEvery is how often a line is written where there is no terminal.
const progressEvery = 10 * time.Second

func newProgress(out io.Writer) *progress {
	f, ok := out.(*os.File)
	return &progress{out: out, bars: ok && term.IsTerminal(int(f.Fd())), said: time.Now()}
}

// show may be called by several goroutines. Another unit begins another count.
func (p *progress) show(done, total int64, unit string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.bars {
		if time.Since(p.said) >= progressEvery {
			fmt.Fprintf(p.out, "%s: %d of %d\n", unit, done, total)
			p.said = time.Now()
		}
		return
	}
	if p.bar == nil || p.unit != unit {
		p.clear()
		p.unit = unit
		p.bar = progressbar.NewOptions64(max(total, 1), progressbar.OptionSetWriter(p.out), progressbar.OptionSetDescription(unit),
			progressbar.OptionShowCount(), progressbar.OptionSetPredictTime(true), progressbar.OptionThrottle(100*time.Millisecond),
			progressbar.OptionClearOnFinish())
	}
	p.bar.ChangeMax64(max(total, 1))
	_ = p.bar.Set64(done) // what a terminal does with output is not ours to repair
}

// end takes the bar away.
func (p *progress) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.clear()
}

func (p *progress) clear() {
	if p.bar != nil {
		_ = p.bar.Clear()
		p.bar = nil
	}
}
