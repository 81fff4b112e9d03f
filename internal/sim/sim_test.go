package sim

import (
	"sync"
	"testing"

	"github.com/koinon/koinon/internal/sim/simtest"
)

func TestSeeds(t *testing.T) {
	var mu sync.Mutex
	var total Stats
	simtest.Each(t, 240, func(t *testing.T, seed uint64, trace func(string)) {
		res := Run(Options{Seed: seed, Trace: trace})
		if res.Err != nil {
			t.Errorf("%v\nrun it again with make sim SEED=%d", res.Err, seed)
		}
		if trace != nil {
			t.Logf("seed %d: hash %016x", seed, res.Hash)
		}
		mu.Lock()
		defer mu.Unlock()
		total.Add(res.Stats)
	})
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
