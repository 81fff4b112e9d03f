package sched

import "math/bits"

// Ledger is how much users have used of late. What is long ago counts less: half after HalfLife. It is plain data, for
// the driver to keep; not safe for concurrent use.
type Ledger struct {
	Use      map[string]uint64 // in billionths of the cluster, times seconds
	Weights  map[string]uint64 // a user of weight 2 may use twice as much as one of weight 1, which is everybody not named
	HalfLife Time              // zero: 15 minutes
	At       Time              // Use is as of this moment
}

const (
	billion    = 1_000_000_000
	useMax     = 1 << 62
	nominalSec = 10 // what a gang that starts is charged in advance, within one plan only
)

// Share is the share that r has of total, in billionths: of the resource of which it takes the larger share (Ghodsi et al.,
// "Dominant Resource Fairness", 2011).
func Share(total, r Resources) uint64 {
	return max(share(total.CPU, r.CPU), share(total.Memory, r.Memory))
}

func share(total, part int64) uint64 {
	if total <= 0 || part <= 0 {
		return 0
	}
	if part >= total {
		return billion
	}
	hi, lo := bits.Mul64(uint64(part), billion)
	q, _ := bits.Div64(hi, lo, uint64(total))
	return q
}

// Charge notes that a user has had a share, in billionths, for a while that has just ended. Whoever keeps the ledger
// calls it for everything that runs, every few seconds, and when it ends.
func (l *Ledger) Charge(now Time, user string, share uint64, lasted Time) {
	l.Advance(now)
	if l.Use == nil {
		l.Use = map[string]uint64{}
	}
	hi, lo := bits.Mul64(share, uint64(max(lasted, 0)))
	if hi >= billion {
		hi, lo = billion-1, 0
	}
	seconds, _ := bits.Div64(hi, lo, billion)
	l.Use[user] = min(l.Use[user]+min(seconds, useMax), useMax)
}

// Advance lets what has been used fade, in 64 steps to the half. It does not matter how often it is called.
func (l *Ledger) Advance(now Time) {
	half := l.HalfLife
	if half <= 0 {
		half = 900e9
	}
	step := max(half/64, 1)
	steps := (now - l.At) / step
	if steps <= 0 {
		return
	}
	l.At += steps * step
	for u, x := range l.Use {
		x >>= min(steps/64, 63)
		for range steps % 64 {
			x -= min(max(x/93, 1), x) // (1-1/93)^64 is a half
		}
		if l.Use[u] = x; x == 0 {
			delete(l.Use, u)
		}
	}
}

// weighted is what a user has used, for his weight. Comparable between users.
func (l *Ledger) weighted(user string, extra uint64) uint64 {
	if l == nil {
		return extra
	}
	return min(l.Use[user]+extra, useMax) / max(l.Weights[user], 1)
}
