package main

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"
)

// disk is what the disk alone takes to make a command durable, medians. With one command in flight syncs do not come
// one right after the other: there is a pause between them, after which many disks are slower, and the replicas
// sync at about the same time.
type disk struct {
	sync     time.Duration // one sync of an overwritten page, right after the last one
	paused   time.Duration // one after a pause
	majority time.Duration // after a pause three files at once, until the second of them is durable
}

const (
	// pause is about the time between the syncs of one command and the next, with one in flight.
	pause = 500 * time.Microsecond
	// pauses is how often one is measured.
	pauses = 300
)

// measureDisk takes about a second.
func measureDisk(dir string, size int) (d disk, err error) {
	rings := make([]*ringLog, 0, 3)
	defer func() {
		for _, r := range rings {
			err = errors.Join(err, r.file.Close(), os.Remove(r.file.Name()))
		}
	}()
	for i := range cap(rings) {
		r, err := openRing(filepath.Join(dir, "sync"+strconv.Itoa(i)))
		if err != nil {
			return d, err
		}
		rings = append(rings, r)
	}
	data := make([]byte, size)
	write := func(r *ringLog) error {
		r.end(append(r.begin(), data...))
		return r.commit()
	}
	l, err := drive(1, size, 300*time.Millisecond, func([]byte) error { return write(rings[0]) })
	if err != nil {
		return d, err
	}
	d.sync = l.P50
	if d.paused, err = paused(rings[:1], 1, write); err != nil {
		return d, err
	}
	d.majority, err = paused(rings, 2, write)
	return d, err
}

// paused is the median time until so many of the logs, which are written at once after a pause, are durable.
func paused(rings []*ringLog, many int, write func(*ringLog) error) (time.Duration, error) {
	var took []time.Duration
	var failed error
	for range pauses {
		time.Sleep(pause)
		began := time.Now()
		each := make([]time.Duration, len(rings))
		errs := make([]error, len(rings))
		var all sync.WaitGroup
		for i, r := range rings {
			all.Go(func() { errs[i] = write(r); each[i] = time.Since(began) })
		}
		all.Wait()
		slices.Sort(each)
		took = append(took, each[many-1])
		failed = errors.Join(append(errs, failed)...)
	}
	return median(took), failed
}
