package webhook

import (
	"net/http"
	"strconv"
	"time"
)

// pauses are how long a delivery waits after its first, second, … failed try: ten tries over 75 hours and 35 minutes.
var pauses = [...]time.Duration{5 * time.Second, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 5 * time.Hour, 10 * time.Hour,
	14 * time.Hour, 20 * time.Hour, 24 * time.Hour}

const (
	// failingFor is how long an endpoint may do nothing but fail before it is paused.
	failingFor = 72 * time.Hour
	// longestWait bounds what an endpoint may ask for with Retry-After.
	longestWait = 24 * time.Hour
	// holdFirst and holdLongest bound how long an endpoint that asked for less is left alone.
	holdFirst   = 5 * time.Second
	holdLongest = 10 * time.Minute
)

// pauseAfter is how long a delivery waits after so many failed tries, between 96 and 110 % of what is planned; more is
// false after the last one. dice is from 0 to 1. With any less, the last try could come before failingFor is over: then
// a delivery would be given up, and its endpoint not paused.
func pauseAfter(tries int, asked time.Duration, dice float64) (pause time.Duration, more bool) {
	if tries > len(pauses) {
		return 0, false
	}
	planned := pauses[max(tries, 1)-1]
	pause = time.Duration(float64(planned) * (0.96 + 0.14*dice))
	return max(pause, min(asked, longestWait)), true
}

// holdFor is how long an endpoint is left alone that asked for less, so often in a row.
func holdFor(slowed int, asked time.Duration) time.Duration {
	pause := holdLongest
	if slowed < 8 {
		pause = min(holdFirst<<(max(slowed, 1)-1), holdLongest)
	}
	return max(pause, min(asked, longestWait))
}

// slows reports whether an answer asks for less.
func slows(status int) bool {
	return status == http.StatusTooManyRequests || status == http.StatusBadGateway || status == http.StatusGatewayTimeout
}

// retryAfter reads what an answer says of when to come back, as seconds or as a date; 0 when it says nothing.
func retryAfter(text string, now time.Time) time.Duration {
	if s, err := strconv.ParseUint(text, 10, 31); err == nil {
		return time.Duration(s) * time.Second
	}
	if at, err := http.ParseTime(text); err == nil {
		return max(0, at.Sub(now))
	}
	return 0
}
