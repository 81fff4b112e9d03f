package replica

import (
	"math/bits"
	"math/rand/v2"
	"slices"
	"sort"
	"testing"

	"github.com/koinon/koinon/internal/rsm"
)

// TestMeter compares with the sorted numbers themselves.
func TestMeter(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 9))
	var m meter
	var all []uint64
	for range 5000 {
		v := rng.Uint64() >> (4 + rng.IntN(60))
		m.add(v)
		all = append(all, v)
	}
	slices.Sort(all)
	s := m.spread()
	if s.Count != 5000 || s.Max != all[4999] {
		t.Fatalf("5000 numbers up to %d expected, found %+v", all[4999], s)
	}
	for q, found := range map[int]uint64{50: s.P50, 99: s.P99} {
		want := all[5000*q/100-1]
		if found < want || float64(found) > 1.25*float64(want)+1 {
			t.Errorf("%d%%: %d or a quarter more expected, found %d", q, want, found)
		}
	}
	for k, found := range s.Below {
		want := sort.Search(len(all), func(i int) bool { return bits.Len64(all[i]) > k })
		if found != uint64(want) {
			t.Errorf("%d numbers below 2^%d expected, found %d", want, k, found)
		}
	}
	for i := 1; i < 200; i++ {
		if low, top := bucketTop(i-1)+1, bucketTop(i); bucketOf(low) != i || bucketOf(top) != i {
			t.Fatalf("bucket %d of %d to %d expected, found %d and %d", i, low, top, bucketOf(low), bucketOf(top))
		}
	}
	if (&meter{}).spread() != (rsm.Spread{}) {
		t.Fatal("nothing expected of an unused meter")
	}
}
