package hosts

import (
	"reflect"
	"sync"
	"testing"

	"github.com/koinon/koinon/internal/sim/simtest"
)

func TestSeeds(t *testing.T) {
	var mu sync.Mutex
	var total Stats
	simtest.Each(t, 200, func(t *testing.T, seed uint64, trace func(string)) {
		res := Run(Options{Seed: seed, Trace: trace})
		if res.Err != nil {
			t.Errorf("%v\nrun it again with make sim SEED=%d", res.Err, seed)
		}
		mu.Lock()
		defer mu.Unlock()
		total.add(res.Stats)
		if trace != nil {
			t.Logf("seed %d: hash %016x", seed, res.Hash)
		}
	})
	t.Logf("%+v", total)
}

// add adds up two counts.
func (s *Stats) add(o Stats) {
	sum, more := reflect.ValueOf(s).Elem(), reflect.ValueOf(o)
	for i := range sum.NumField() {
		sum.Field(i).SetInt(sum.Field(i).Int() + more.Field(i).Int())
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
