package main

import (
	"errors"
	"syscall"
	"time"
)

// diskFacts says how much room the storage folder has.
func diskFacts(path string) (map[string]any, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(path, &st); err != nil {
		return nil, errors.New("the storage folder cannot be reached")
	}
	size := uint64(st.Bsize) // block sizes are positive
	return map[string]any{"free_bytes": st.Bavail * size, "total_bytes": st.Blocks * size}, nil
}

// drainTime is what the door gives requests to end: a little more than the turns get, so that an interrupted turn's
// stream still hears of its end.
func drainTime(s *settings) time.Duration {
	return time.Duration(s.number("SHUTDOWN_TIMEOUT"))*time.Second + 3*time.Second
}
