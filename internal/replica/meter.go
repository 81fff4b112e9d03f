package replica

import (
	"math"
	"math/bits"
	"sync/atomic"

	"github.com/koinon/koinon/internal/rsm"
)

// meter is a histogram of numbers in buckets that grow by a quarter of a power
// of two. It may be used concurrently.
type meter struct {
	count, sum, max atomic.Uint64
	buckets         [4 * 64]atomic.Uint64
}

// bucketOf returns the bucket of a number: its highest bit and the two below it.
func bucketOf(v uint64) int {
	if v < 4 {
		return int(v)
	}
	k := bits.Len64(v) - 1
	return 4*(k-1) + int(v>>(k-2))&3
}

// bucketTop returns the highest number of a bucket.
func bucketTop(i int) uint64 {
	if i < 4 {
		return uint64(i)
	}
	k := i/4 + 1
	return uint64(4+i%4+1)<<(k-2) - 1
}

func (m *meter) add(v uint64) {
	m.count.Add(1)
	m.sum.Add(v)
	m.buckets[bucketOf(v)].Add(1)
	for old := m.max.Load(); v > old && !m.max.CompareAndSwap(old, v); old = m.max.Load() {
	}
}

// spread sums up. What is added meanwhile may be counted in part.
func (m *meter) spread() rsm.Spread {
	s := rsm.Spread{Count: m.count.Load(), Max: m.max.Load()}
	if s.Count == 0 {
		return s
	}
	s.Mean = float64(m.sum.Load()) / float64(s.Count)
	s.P50, s.P99 = m.quantile(s.Count, 0.5), m.quantile(s.Count, 0.99)
	at := 0
	for k := range s.Below {
		if k > 0 {
			s.Below[k] = s.Below[k-1]
		}
		for ; at < len(m.buckets) && bits.Len64(bucketTop(at)) <= k; at++ {
			s.Below[k] += m.buckets[at].Load()
		}
	}
	return s
}

func (m *meter) quantile(count uint64, q float64) uint64 {
	left := uint64(math.Ceil(q * float64(count)))
	for i := range m.buckets {
		n := m.buckets[i].Load()
		if n >= left {
			return min(bucketTop(i), m.max.Load())
		}
		left -= n
	}
	return m.max.Load()
}
