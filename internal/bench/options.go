package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Options say what to measure. Numbers, times and sizes are above zero: begin
// with Defaults.
type Options struct {
	Dirs       []string      // one directory, or two to compare
	Workers    []int         // so many for each test, one after the other
	Only       []string      // names of tests; empty means all
	Files      int           // files of the metadata and small-file tests, over all workers
	SmallSize  int64         // bytes of a small file
	LargeSize  int64         // bytes of the large-file tests, over all workers
	RandomOps  int           // operations of the random tests, over all workers
	Duration   time.Duration // longest time of one test; it stops there with what it has
	Shared     bool          // all workers use one directory instead of one each
	Warm       bool          // do not drop the kernel's caches before the cold tests
	Rounds     int           // how often each test is run on each directory, in turn
	Tree       string        // the source tree to copy in; empty leaves its tests out
	TreeFiles  int           // the most files taken from it, in name order
	NoTreeNote string        // why Tree is empty, for the report
	Command    []string      // the command line, for the report
	Version    string        // of the program, for the report
	Progress   func(Progress)
}

// Progress tells how a run stands. It is passed to Options.Progress a few
// times a second, from one goroutine at a time.
type Progress struct {
	Test    string
	Target  string
	Workers int
	Round   int
	Step    int // of Steps, from 1 on, set-up steps included
	Steps   int
	Ops     int64         // so far
	Elapsed time.Duration // of this test
}

const (
	blockSize     = 1 << 20 // one write or read of the sequential tests
	pageSize      = 4096    // one write or read of the random tests, and the distance of stamps
	maxWorkers    = 1024
	smallMax      = 16 << 20
	errorsMax     = 10 // of one worker in one test; then it gives up
	samplesMax    = 3  // error texts kept
	progressEvery = 250 * time.Millisecond
)

// Defaults returns what is measured where nothing else is asked for. Dirs and
// Tree are the caller's.
func Defaults() Options {
	return Options{Workers: []int{1, 8}, Files: 8000, SmallSize: 16 << 10, LargeSize: 512 << 20, RandomOps: 20000,
		Duration: 10 * time.Second, Rounds: 1, TreeFiles: 4000}
}

// checked returns the options with absolute directories, or what is wrong.
func (o Options) checked() (Options, error) {
	if n := len(o.Dirs); n < 1 || n > 2 {
		return o, fmt.Errorf("expected one directory to measure, or two to compare, found %d", n)
	}
	o.Dirs = slices.Clone(o.Dirs)
	for i, dir := range o.Dirs {
		abs, err := checkDir(dir)
		if err != nil {
			return o, err
		}
		o.Dirs[i] = abs
	}
	if len(o.Workers) == 0 || slices.Min(o.Workers) < 1 || slices.Max(o.Workers) > maxWorkers {
		return o, fmt.Errorf("workers: expected numbers from 1 to %d, found %v", maxWorkers, o.Workers)
	}
	for _, p := range []struct {
		name  string
		value int64
		given any
	}{
		{"files", int64(o.Files), o.Files}, {"small size", o.SmallSize, o.SmallSize}, {"large size", o.LargeSize, o.LargeSize},
		{"random operations", int64(o.RandomOps), o.RandomOps}, {"duration", int64(o.Duration), o.Duration},
		{"rounds", int64(o.Rounds), o.Rounds}, {"tree files", int64(o.TreeFiles), o.TreeFiles},
	} {
		if p.value <= 0 {
			return o, fmt.Errorf("%s: expected more than 0, found %v", p.name, p.given)
		}
	}
	if o.SmallSize > smallMax {
		return o, fmt.Errorf("small size: expected at most %d bytes, found %d; measure larger files with the large size", smallMax, o.SmallSize)
	}
	if least := int64(slices.Max(o.Workers)) * pageSize; o.LargeSize < least {
		return o, fmt.Errorf("large size: expected at least %d bytes, a page for each worker, found %d", least, o.LargeSize)
	}
	for _, name := range o.Only {
		if !slices.Contains(TestNames(), name) {
			return o, fmt.Errorf("no test is called %q; the tests are %s", name, strings.Join(TestNames(), ", "))
		}
	}
	return o, nil
}

func checkDir(dir string) (string, error) {
	fi, err := os.Stat(dir)
	if err != nil {
		return "", fmt.Errorf("%w; give the path of a mounted directory", err)
	}
	if !fi.IsDir() {
		return "", fmt.Errorf("%s is not a directory; give the path of a mounted directory", dir)
	}
	return filepath.Abs(dir)
}

func (o *Options) wants(test string) bool {
	return len(o.Only) == 0 || slices.Contains(o.Only, test)
}

// share is worker w's part of total among n workers.
func share[T int | int64](total T, w, n int) T {
	part := total / T(n)
	if T(w) < total%T(n) {
		part++
	}
	return part
}

// ParseSize reads a number of bytes as "4096", "16KiB", "512M" or "1.5GiB".
// K, M, G and T are powers of 1024 with or without "iB" or "B".
func ParseSize(s string) (int64, error) {
	number := strings.TrimRight(strings.TrimSpace(s), "iBb")
	unit := int64(1)
	if number != "" {
		if i := strings.IndexByte("KMGT", number[len(number)-1]&^0x20); i >= 0 {
			unit = 1 << (10 * (i + 1))
			number = number[:len(number)-1]
		}
	}
	v, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if err != nil || v < 0 || v*float64(unit) >= 1<<62 {
		return 0, fmt.Errorf("%q is not a size; write it as 4096, 16KiB, 512MiB or 1.5GiB", s)
	}
	return int64(v * float64(unit)), nil
}
