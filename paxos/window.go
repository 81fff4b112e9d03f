package paxos

import "bytes"

// slotState is what a node holds in memory about one slot. The zero value is a slot without an entry.
type slotState struct {
	entry Entry
	seq   uint64 // the entry is durable when this number is
	votes uint64 // voters known to have accepted entry, one bit for each of peers; kept by the leader
}

// held reports whether the slot has an entry.
func (s *slotState) held() bool { return s != nil && s.entry.Kind != 0 }

// window is a ring of slot states for the slots [lo, hi). Slots below lo are in the log or cut.
type window struct {
	ring   []slotState // its length is a power of two
	lo, hi Slot
	bytes  int // entry data held
}

const (
	windowSlotsMin = 16
	// entryOverhead is what an entry costs beside its data when bytes are counted, in memory and in messages.
	entryOverhead = 64
)

func newWindow(lo Slot) window {
	return window{ring: make([]slotState, windowSlotsMin), lo: lo, hi: lo}
}

// at returns the state of a slot, or nil when the window does not reach it.
func (w *window) at(s Slot) *slotState {
	if s < w.lo || s >= w.hi {
		return nil
	}
	return &w.ring[uint64(s)&uint64(len(w.ring)-1)]
}

// extend makes the window reach slot s and returns its state. s must not be below lo.
func (w *window) extend(s Slot) *slotState {
	if s < w.lo {
		broken("window: a slot at or above %d expected, found %d", w.lo, s)
	}
	if need := uint64(s-w.lo) + 1; need > uint64(len(w.ring)) {
		w.grow(need)
	}
	if s >= w.hi {
		w.hi = s + 1
	}
	return w.at(s)
}

func (w *window) grow(need uint64) {
	size := uint64(len(w.ring))
	for size < need {
		size *= 2
	}
	ring := make([]slotState, size)
	for s := w.lo; s < w.hi; s++ {
		ring[uint64(s)&(size-1)] = w.ring[uint64(s)&uint64(len(w.ring)-1)]
	}
	w.ring = ring
}

// put stores an entry over whatever the slot held.
func (w *window) put(e Entry, seq uint64) *slotState {
	st := w.extend(e.Slot)
	if st.held() {
		w.bytes -= len(st.entry.Data) + entryOverhead
	}
	w.bytes += len(e.Data) + entryOverhead
	*st = slotState{entry: e, seq: seq}
	return st
}

// dropFirst forgets the lowest slot.
func (w *window) dropFirst() {
	st := w.at(w.lo)
	if st.held() {
		w.bytes -= len(st.entry.Data) + entryOverhead
	}
	if st != nil {
		*st = slotState{}
	}
	w.lo++
	if w.hi < w.lo {
		w.hi = w.lo
	}
}

// dropTo forgets all slots up to and including s.
func (w *window) dropTo(s Slot) {
	for w.lo <= s && w.lo < w.hi {
		w.dropFirst()
	}
	if w.lo <= s {
		w.lo, w.hi = s+1, s+1
	}
}

// last returns the highest slot that has an entry, or zero.
func (w *window) last() Slot {
	for s := w.hi; s > w.lo; s-- {
		if w.at(s - 1).held() {
			return s - 1
		}
	}
	return 0
}

// entries appends to dst the entries of [lo, hi) that are held, in order, up to a number of bytes and of entries, and
// returns the slot after the last one looked at. At least one entry is taken.
func (w *window) entries(dst []Entry, lo, hi Slot, maxBytes, maxCount int) ([]Entry, Slot) {
	size, count := 0, 0
	for s := lo; s < hi; s++ {
		st := w.at(s)
		if !st.held() {
			continue
		}
		size += len(st.entry.Data) + entryOverhead
		if count > 0 && (size > maxBytes || count >= maxCount) {
			return dst, s
		}
		dst = append(dst, st.entry)
		count++
	}
	return dst, hi
}

// sameValue reports whether two entries say the same, whatever their ballots.
func sameValue(a, b *Entry) bool {
	return a.Kind == b.Kind && bytes.Equal(a.Data, b.Data)
}
