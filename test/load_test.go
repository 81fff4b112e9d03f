package test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// load writes files whose bytes follow from their names and versions, and
// remembers what was acknowledged: a file counts once its close or fsync has
// returned, a removal or rename once it has returned.
type load struct {
	dir  string
	seed uint64

	mu    sync.Mutex
	files map[string]version // what must be there
	ops   int
	slow  time.Duration // the longest operation
}

type version struct {
	n    uint64
	size int
}

// content returns the bytes of a version of a file.
func content(name string, v version) []byte {
	var key [32]byte
	copy(key[:], name)
	binary.LittleEndian.PutUint64(key[24:], v.n)
	b := make([]byte, v.size)
	if _, err := rand.NewChaCha8(key).Read(b); err != nil {
		panic(err)
	}
	return b
}

func newLoad(dir string, seed uint64) *load {
	return &load{dir: dir, seed: seed, files: map[string]version{}}
}

// run drives workers until stop is closed; any error is one that a program
// would have seen, and ends the run.
func (l *load) run(workers int, stop <-chan struct{}) error {
	errs := make([]error, workers)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() { errs[w] = l.worker(w, stop) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (l *load) worker(w int, stop <-chan struct{}) error {
	rng := rand.New(rand.NewPCG(l.seed, uint64(w)))
	dir := filepath.Join(l.dir, fmt.Sprintf("w%d", w))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for n := uint64(1); ; n++ {
		select {
		case <-stop:
			return nil
		default:
		}
		began := time.Now()
		if err := l.step(rng, dir, w, n); err != nil {
			return fmt.Errorf("worker %d, operation %d, after %v: %w", w, n, time.Since(began), err)
		}
		l.mu.Lock()
		l.ops++
		l.slow = max(l.slow, time.Since(began))
		l.mu.Unlock()
	}
}

func (l *load) step(rng *rand.Rand, dir string, w int, n uint64) error {
	name := filepath.Join(dir, fmt.Sprintf("f%d", rng.IntN(60)))
	l.mu.Lock()
	old, exists := l.files[name]
	l.mu.Unlock()
	switch p := rng.IntN(100); {
	case p < 60 || !exists:
		return l.write(rng, name, version{n, size(rng)})
	case p < 75:
		return verify(name, old)
	case p < 85:
		if err := os.Remove(name); err != nil {
			return err
		}
		l.forget(name)
		return nil
	default:
		// The new name holds the bytes of the old one, so a file under
		// another name is written and then put over this one: save by rename.
		return l.replace(rng, name, version{n, size(rng)})
	}
}

func size(rng *rand.Rand) int {
	switch rng.IntN(10) {
	case 0:
		return 0
	case 1, 2:
		return rng.IntN(2 << 20)
	case 3:
		return 4<<20 + rng.IntN(2<<20)
	}
	return rng.IntN(100 << 10)
}

// write replaces a file's bytes in place. While it runs, neither version is
// promised.
func (l *load) write(rng *rand.Rand, name string, v version) error {
	l.forget(name)
	if err := l.put(rng, name, name, v); err != nil {
		return err
	}
	l.keep(name, v)
	return nil
}

// replace writes a new file beside name and renames it over: one of the two
// versions is there at any time.
func (l *load) replace(rng *rand.Rand, name string, v version) error {
	if err := l.put(rng, name+".new", name, v); err != nil {
		return err
	}
	if err := os.Rename(name+".new", name); err != nil {
		return err
	}
	l.keep(name, v)
	return nil
}

func (l *load) put(rng *rand.Rand, path, name string, v version) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	b := content(name, v)
	for len(b) > 0 && err == nil {
		n := min(len(b), 1+rng.IntN(1<<20))
		_, err = f.Write(b[:n])
		b = b[n:]
	}
	if err == nil && rng.IntN(2) == 0 {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func (l *load) keep(name string, v version) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.files[name] = v
}

func (l *load) forget(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.files, name)
}

func verify(name string, v version) error {
	got, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	want := content(name, v)
	if bytes.Equal(got, want) {
		return nil
	}
	at := 0
	for at < min(len(got), len(want)) && got[at] == want[at] {
		at++
	}
	return fmt.Errorf("%s holds wrong bytes: %d bytes instead of %d, the first difference at %d", name, len(got), len(want), at)
}

// check holds the mount, found under another root if need be, against what was
// acknowledged.
func (l *load) check(t *testing.T) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	lost := 0
	for name, v := range l.files {
		if err := verify(name, v); err != nil {
			t.Errorf("acknowledged and lost: %v", err)
			if lost++; lost > 10 {
				t.Fatal("and more")
			}
		}
	}
	err := filepath.WalkDir(l.dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() && filepath.Ext(path) == "" {
			if _, ok := l.files[path]; !ok {
				t.Errorf("removed and still there: %s", path)
			}
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
