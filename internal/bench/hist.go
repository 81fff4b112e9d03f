package bench

import (
	"math/bits"
	"time"
)

// A hist counts durations in buckets of 1/64 of a power of two, so a
// percentile is exact to 1.6%. It is one flat array: adding is two shifts and
// an increment. Not safe for concurrent use.
type hist struct {
	counts [histBuckets]uint32
	n      int64
	max    time.Duration
}

const (
	histSubBits = 6
	histSub     = 1 << histSubBits
	histMaxLen  = 42 // durations of 2^42 ns (73 minutes) and more share the last bucket
	histBuckets = (histMaxLen - histSubBits + 1) * histSub
)

func histBucket(d time.Duration) int {
	if d < histSub {
		return int(max(d, 0))
	}
	exp := bits.Len64(uint64(d)) - histSubBits - 1
	return min((exp+1)*histSub+int(uint64(d)>>exp)-histSub, histBuckets-1)
}

// histValue is the middle of bucket b.
func histValue(b int) time.Duration {
	if b < histSub {
		return time.Duration(b)
	}
	exp := b/histSub - 1
	low := uint64(b%histSub+histSub) << exp
	return time.Duration(low + 1<<exp/2)
}

func (h *hist) add(d time.Duration) {
	h.counts[histBucket(d)]++
	h.n++
	h.max = max(h.max, d)
}

func (h *hist) merge(o *hist) {
	for i, c := range o.counts {
		h.counts[i] += c
	}
	h.n += o.n
	h.max = max(h.max, o.max)
}

// quantile returns the duration that a share q (0 to 1) of all does not
// exceed, 0 when nothing was added.
func (h *hist) quantile(q float64) time.Duration {
	if h.n == 0 {
		return 0
	}
	rank := min(int64(q*float64(h.n)), h.n-1)
	for i, c := range h.counts {
		if rank -= int64(c); rank < 0 {
			return min(histValue(i), h.max)
		}
	}
	return h.max
}
