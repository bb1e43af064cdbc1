package main

import (
	"math"
	"testing"
	"testing/fstest"
)

func TestRoomForTenants(t *testing.T) {
	const gib = 1 << 30
	for _, c := range []struct {
		files, bytes uint64
		open, spare  int
	}{
		{1024, 64 * gib, 153, 52},
		{20_000, 64 * gib, 3795, 1265},
		{65_536, 64 * gib, 4096, 4096},
		{math.MaxUint64, math.MaxUint64, 4096, 4096},
		{20_000, 2 * gib, 512, 4096},
		{64, 64 * gib, 9, 4},
		{1, 1, 1, 4},
	} {
		open := roomFor(c.files, c.bytes)
		if spare := spareFor(c.files, open); open != c.open || spare != c.spare {
			t.Errorf("%d descriptors, %d bytes: %d and %d, want %d and %d", c.files, c.bytes, open, spare, c.open, c.spare)
		}
	}
}

func TestMemory(t *testing.T) {
	machine := map[string]string{"proc/meminfo": "MemTotal:       1000 kB\nMemFree:       1 kB\n"}
	for name, c := range map[string]struct {
		also map[string]string
		want uint64
	}{
		"a machine":            {nil, 1000 << 10},
		"without a limit":      {map[string]string{"sys/fs/cgroup/memory.max": "max\n"}, 1000 << 10},
		"a container":          {map[string]string{"sys/fs/cgroup/memory.max": "4096\n"}, 4096},
		"an older container":   {map[string]string{"sys/fs/cgroup/memory/memory.limit_in_bytes": "8192\n"}, 8192},
		"a service":            {map[string]string{"proc/self/cgroup": "0::/system.slice/memoryd.service\n", "sys/fs/cgroup/system.slice/memoryd.service/memory.max": "5000\n"}, 5000},
		"a service in a slice": {map[string]string{"proc/self/cgroup": "0::/system.slice/memoryd.service\n", "sys/fs/cgroup/system.slice/memory.max": "6000\n", "sys/fs/cgroup/system.slice/memoryd.service/memory.max": "max\n"}, 6000},
		"an older service":     {map[string]string{"proc/self/cgroup": "5:cpu:/x\n4:memory:/a/b\n0::/\n", "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "7000\n"}, 7000},
		"more than there is":   {map[string]string{"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, 1000 << 10},
	} {
		t.Run(name, func(t *testing.T) {
			root := fstest.MapFS{}
			for _, files := range []map[string]string{machine, c.also} {
				for at, text := range files {
					root[at] = &fstest.MapFile{Data: []byte(text)}
				}
			}
			if got := memory(root); got != c.want {
				t.Errorf("%d bytes, want %d", got, c.want)
			}
		})
	}
	if got := memory(fstest.MapFS{}); got != math.MaxUint64 {
		t.Errorf("where nothing tells: %d bytes", got)
	}
}
