package hosts

import (
	"os"
	"testing"

	"github.com/koinon/koinon/internal/sim/simtest"
)

func TestSeeds(t *testing.T) {
	first, end := simtest.Seeds(t, 200)
	for seed := first; seed < end; seed++ {
		opt := Options{Seed: seed}
		if os.Getenv("KOINON_TRACE") != "" {
			opt.Trace = func(line string) { t.Log(line) }
		}
		res := Run(opt)
		if res.Err != nil {
			t.Errorf("%v\nrun it again with KOINON_SEED=%d", res.Err, seed)
		}
		t.Logf("%d: %x %+v", seed, res.Hash, res.Stats)
	}
}

func TestSameSeedSameRun(t *testing.T) {
	for seed := uint64(1); seed <= 5; seed++ {
		a, b := Run(Options{Seed: seed}), Run(Options{Seed: seed})
		if a.Hash != b.Hash || a.Stats != b.Stats {
			t.Errorf("seed %d: two runs differ: %x and %x\n%+v\n%+v", seed, a.Hash, b.Hash, a.Stats, b.Stats)
		}
	}
}
