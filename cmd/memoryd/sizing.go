package main

import (
	"io/fs"
	"math"
	"os"
	"path"
	"runtime"
	"strconv"
	"strings"
	"syscall"
)

// maxOpen is how many tenants' databases may be open at once, and spare how many reading connections beside the one that
// each SQLite file has.
func maxOpen(s *settings) (open, spare int) {
	files := uint64(math.MaxUint64)
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err == nil {
		files = limit.Cur
	}
	open = s.number("MAX_OPEN_TENANTS")
	if open <= 0 {
		open = roomFor(files, memory(os.DirFS("/")))
	}
	return open, spareFor(files, open)
}

// roomFor is how many databases may be open with so many descriptors and bytes of memory. A SQLite connection holds
// three descriptors. An open tenant has one connection, a share in what is being closed, and a share in the spare ones;
// the rest of the server needs descriptors too. Most hold half a megabyte; a quarter of the memory is theirs.
func roomFor(files, bytes uint64) int {
	const perTenant, most = 5, 4096
	return int(max(1, min(filesOfTenants(files)/perTenant, bytes/4>>20, most)))
}

// spareFor is how many more connections there is room for.
func spareFor(files uint64, open int) int {
	const perTenant, perConn, most = 4, 3, 4096
	left := filesOfTenants(files)
	return int(max(4, min((left-min(left, perTenant*uint64(open)))/perConn, most)))
}

func filesOfTenants(files uint64) uint64 {
	const reserve = 1024
	return files - min(reserve, files/4)
}

// searchShare is how much of one processor the searches of a tenant may take for long: a fortieth of what there is
// (decision 0077).
func searchShare(s *settings) float64 {
	if !s.on("RATE_LIMIT") {
		return 0
	}
	return float64(runtime.GOMAXPROCS(0)) / 40
}

// memory is how much of it this process may use, in bytes: of what the machine has and what control groups allow, the
// least. Where nothing tells, there is no end of it.
func memory(root fs.FS) uint64 {
	least := uint64(math.MaxUint64)
	for line := range lines(root, "proc/meminfo") {
		if f := strings.Fields(line); len(f) == 3 && f[0] == "MemTotal:" {
			if kib, err := strconv.ParseUint(f[1], 10, 64); err == nil {
				least = kib << 10
			}
		}
	}
	const groups = "sys/fs/cgroup"
	files := []string{groups + "/memory.max", groups + "/memory/memory.limit_in_bytes"} // as a container sees its own
	for line := range lines(root, "proc/self/cgroup") {
		hierarchy, own, _ := strings.Cut(line, ":")
		controllers, own, _ := strings.Cut(own, ":")
		file, at := "memory.max", groups
		switch {
		case controllers == "memory":
			file, at = "memory.limit_in_bytes", groups+"/memory"
		case hierarchy != "0":
			continue
		}
		for ; own != "/" && own != "" && own != "."; own = path.Dir(own) { // a group is bound by those around it
			files = append(files, path.Join(at, own, file))
		}
	}
	for _, file := range files {
		for line := range lines(root, file) {
			if n, err := strconv.ParseUint(line, 10, 64); err == nil { // others say "max"
				least = min(least, n)
			}
		}
	}
	return least
}

// lines are those of a file; none when it cannot be read.
func lines(root fs.FS, name string) func(yield func(string) bool) {
	raw, _ := fs.ReadFile(root, name)
	return strings.SplitSeq(strings.TrimSpace(string(raw)), "\n")
}
