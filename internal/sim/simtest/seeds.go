// Package simtest is what the tests of simulations share: which seeds they run,
// and how they look for planted mistakes.
package simtest

import (
	"os"
	"runtime"
	"strconv"
	"sync/atomic"
	"testing"
)

// Each runs fn for every seed, some at a time: the first count of them, as many
// as KOINON_SEEDS says, or the one that KOINON_SEED names. With KOINON_TRACE set
// fn gets something that prints the events. fn may fail the test.
func Each(t *testing.T, count int, fn func(t *testing.T, seed uint64, trace func(line string))) {
	t.Helper()
	first := uint64(1)
	if s := os.Getenv("KOINON_SEED"); s != "" {
		first, count = number(t, "KOINON_SEED"), 1
	} else if os.Getenv("KOINON_SEEDS") != "" {
		count = int(number(t, "KOINON_SEEDS"))
	}
	var trace func(line string)
	if os.Getenv("KOINON_TRACE") != "" {
		trace = func(line string) { t.Log(line) }
	}
	if count < 1 {
		t.Fatalf("KOINON_SEEDS is %d: choose at least one seed", count)
	}
	end := first + uint64(count)
	var next atomic.Uint64
	next.Store(first)
	t.Run("run", func(t *testing.T) {
		for range min(count, runtime.GOMAXPROCS(0)) {
			t.Run("", func(t *testing.T) {
				t.Parallel()
				for seed := next.Add(1) - 1; seed < end; seed = next.Add(1) - 1 {
					fn(t, seed, trace)
				}
			})
		}
	})
}

func number(t *testing.T, name string) uint64 {
	t.Helper()
	n, err := strconv.ParseUint(os.Getenv(name), 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// Find looks for the first seed that finds a mistake, for run returns an error
// then. Unless KOINON_MUTATIONS is set it tries the seed that is known, and
// others only when that one does not find it any more.
func Find(t *testing.T, name string, known, most uint64, run func(seed uint64) error) {
	t.Helper()
	if os.Getenv("KOINON_MUTATIONS") == "" && run(known) != nil {
		return
	}
	for seed := uint64(1); seed <= most; seed++ {
		if err := run(seed); err != nil {
			t.Logf("%-45s %4d  %.150v", name, seed, err)
			return
		}
	}
	t.Errorf("%-45s not found with %d seeds", name, most)
}
