package main

import (
	"encoding/binary"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// load is what a run of commands gave.
type load struct {
	Ops      uint64
	Took     time.Duration
	P50, P99 time.Duration
}

// rate is in commands per second.
func (l load) rate() float64 { return float64(l.Ops) / l.Took.Seconds() }

// drive keeps depth commands in flight for a while: as many callers, each of
// which waits for its answer. The first error ends it.
func drive(depth, size int, during time.Duration, propose func(cmd []byte) error) (load, error) {
	took := make([][]time.Duration, depth)
	errs := make([]error, depth)
	var next atomic.Uint64
	var failed atomic.Bool
	var wg sync.WaitGroup
	start := time.Now()
	for i := range depth {
		wg.Go(func() {
			for !failed.Load() && time.Since(start) < during {
				at := time.Now()
				if errs[i] = propose(command(next.Add(1), size)); errs[i] != nil {
					failed.Store(true)
					return
				}
				took[i] = append(took[i], time.Since(at))
			}
		})
	}
	wg.Wait()
	total := time.Since(start)
	all := slices.Concat(took...)
	if len(all) == 0 {
		return load{}, errors.Join(append(errs, errors.New("no command was done"))...)
	}
	slices.Sort(all)
	return load{Ops: uint64(len(all)), Took: total, P50: all[len(all)/2], P99: all[len(all)*99/100]}, errors.Join(errs...)
}

// command makes command number n: bytes that no compression shrinks to nothing,
// of a key that is hit by others too.
func command(n uint64, size int) []byte {
	b := make([]byte, size)
	x := n * 0x9e3779b97f4a7c15
	binary.LittleEndian.PutUint64(b, (x>>40)%keyRange)
	binary.LittleEndian.PutUint64(b[8:], n)
	for at := commandMin; at+8 <= size; at += 8 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		binary.LittleEndian.PutUint64(b[at:], x)
	}
	return b
}

// commandMin is the least size of a command, in bytes.
const commandMin = 16
