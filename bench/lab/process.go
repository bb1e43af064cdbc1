package lab

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// Resident is the memory that a process holds, in bytes; 0 where the system does not tell.
func Resident(pid int) int64 {
	raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)) // 0 where there is no such thing
	for line := range strings.Lines(string(raw)) {
		var kib int64
		if n, _ := fmt.Sscanf(line, "VmRSS: %d kB", &kib); n == 1 {
			return kib << 10
		}
	}
	return 0
}

// Processor is the time that a process has had of the processor so far, in hundredths of a second; 0 where the system
// does not tell.
func Processor(pid int) time.Duration {
	raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)) // 0 where there is no such thing
	text := string(raw)
	f := strings.Fields(text[strings.LastIndexByte(text, ')')+1:]) // a name may hold anything
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.Atoi(f[11])   // the kernel writes numbers
	system, _ := strconv.Atoi(f[12]) // the same
	return time.Duration(user+system) * 10 * time.Millisecond
}

// Load is how busy the machine is: the load average of the last minute.
func Load() string {
	raw, _ := os.ReadFile("/proc/loadavg") // empty where there is no such thing
	if f := strings.Fields(string(raw)); len(f) > 0 {
		return f[0]
	}
	return "unknown"
}
