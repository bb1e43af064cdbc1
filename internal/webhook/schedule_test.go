package webhook

import (
	"testing"
	"time"
)

// However the dice fall, an endpoint that does nothing but fail is paused before its first delivery is given up.
func TestTheLastTryComesLate(t *testing.T) {
	var all time.Duration
	for tries := 1; ; tries++ {
		pause, more := pauseAfter(tries, 0, 0)
		if !more {
			break
		}
		all += pause
	}
	if all < failingFor {
		t.Errorf("given up after %v", all)
	}
}
