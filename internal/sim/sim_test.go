package sim

import (
	"os"
	"strconv"
	"testing"
)

// seeds returns which seeds to run: KOINON_SEED names one, KOINON_SEEDS how many.
func seeds(t *testing.T, count int) (first, end uint64) {
	t.Helper()
	if s := os.Getenv("KOINON_SEED"); s != "" {
		seed, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("KOINON_SEED: %v", err)
		}
		return seed, seed + 1
	}
	if s := os.Getenv("KOINON_SEEDS"); s != "" {
		var err error
		if count, err = strconv.Atoi(s); err != nil {
			t.Fatalf("KOINON_SEEDS: %v", err)
		}
	}
	return 1, uint64(count) + 1
}

func TestSeeds(t *testing.T) {
	first, end := seeds(t, 240)
	var total Stats
	for seed := first; seed < end; seed++ {
		opt := Options{Seed: seed}
		if os.Getenv("KOINON_TRACE") != "" {
			opt.Trace = func(line string) { t.Log(line) }
		}
		res := Run(opt)
		if res.Err != nil {
			t.Errorf("%v\nrun it again with KOINON_SEED=%d", res.Err, seed)
		}
		total.Add(res.Stats)
	}
	t.Logf("%+v", total)
}

func TestSameSeedSameRun(t *testing.T) {
	for seed := uint64(1); seed <= 5; seed++ {
		a, b := Run(Options{Seed: seed}), Run(Options{Seed: seed})
		if a.Hash != b.Hash || a.Stats != b.Stats {
			t.Fatalf("seed %d: two runs differ: %x and %x", seed, a.Hash, b.Hash)
		}
	}
}
