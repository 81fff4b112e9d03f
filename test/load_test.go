//go:build linux

package test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
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
	long  []span        // all that took a second or more
}

// span is from one moment to another.
type span struct{ Began, Ended time.Time }

// beyond is the longest that an operation took while nothing that it may have
// waited for was away.
func (l *load) beyond(away []span) (longest time.Duration) {
	for _, op := range l.long {
		took := op.Ended.Sub(op.Began)
		for _, a := range away {
			began, ended := a.Began, a.Ended
			if began.Before(op.Began) {
				began = op.Began
			}
			if ended.After(op.Ended) {
				ended = op.Ended
			}
			took -= max(0, ended.Sub(began))
		}
		longest = max(longest, took)
	}
	return longest
}

type version struct {
	N    uint64
	Size int
}

// content returns the bytes of a version of a file.
func content(name string, v version) []byte {
	var key [32]byte
	copy(key[:], name)
	binary.LittleEndian.PutUint64(key[24:], v.N)
	b := make([]byte, v.Size)
	if _, err := rand.NewChaCha8(key).Read(b); err != nil {
		panic(err)
	}
	return b
}

func newLoad(dir string, seed uint64) *load {
	return &load{dir: dir, seed: seed, files: map[string]version{}}
}

// loadResult is what a load process has to say when it ends.
type loadResult struct {
	Files map[string]version // what must be there
	Ops   int
	Slow  time.Duration // the longest operation
	Long  []span
	Err   string // that a program saw
}

// loadEnv makes the test binary a load process: "DIR SEED WORKERS".
const loadEnv = "KOINON_TEST_LOAD"

// TestMain runs the tests, a load, or a client of a history. A load is a process
// of its own because a process that has files of the mount open waits, when it
// starts another, for the mount to flush them; whoever restarts the nodes must
// not.
func TestMain(m *testing.M) {
	if spec := os.Getenv(clientEnv); spec != "" {
		if err := clientMain(spec); err != nil {
			fmt.Fprintln(os.Stderr, "client:", err)
			os.Exit(2)
		}
		os.Exit(0)
	}
	spec := os.Getenv(loadEnv)
	if spec == "" {
		os.Exit(m.Run())
	}
	var dir string
	var seed uint64
	var workers int
	if _, err := fmt.Sscan(spec, &dir, &seed, &workers); err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(2)
	}
	l := newLoad(dir, seed)
	stop := make(chan struct{})
	go func() {
		defer close(stop)
		if _, err := io.Copy(io.Discard, os.Stdin); err != nil { // until the test closes it
			fmt.Fprintln(os.Stderr, "load:", err)
		}
	}()
	r := loadResult{}
	if err := l.run(workers, stop); err != nil {
		r.Err = err.Error()
	}
	r.Files, r.Ops, r.Slow, r.Long = l.files, l.ops, l.slow, l.long
	if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(2)
	}
	os.Exit(0)
}

// loadProcess is a load that runs beside the test.
type loadProcess struct {
	t     *testing.T
	dir   string
	cmd   *exec.Cmd
	stdin io.WriteCloser
	out   bytes.Buffer
	ended chan struct{} // closed when the process has ended
	err   error
}

func startLoad(t *testing.T, dir string, seed uint64, workers int) *loadProcess {
	t.Helper()
	p := &loadProcess{t: t, dir: dir, cmd: exec.Command(os.Args[0]), ended: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d %d", loadEnv, dir, seed, workers))
	p.cmd.Stdout, p.cmd.Stderr = &p.out, os.Stderr
	var err error
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.ended)
	}()
	t.Cleanup(func() {
		select {
		case <-p.ended:
		default:
			if err := p.cmd.Process.Kill(); err != nil {
				t.Error(err)
			}
			<-p.ended
		}
	})
	return p
}

// finish ends the load and returns it, to be checked. A program must not have
// seen an error.
func (p *loadProcess) finish() *load {
	p.t.Helper()
	if err := p.stdin.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		p.t.Error(err)
	}
	select {
	case <-p.ended:
	case <-time.After(2 * time.Minute):
		p.t.Fatal("the load does not end: an operation hangs")
	}
	var r loadResult
	if p.err != nil {
		p.t.Fatalf("the load failed: %v", p.err)
	}
	if err := json.Unmarshal(p.out.Bytes(), &r); err != nil {
		p.t.Fatalf("the load's result: %v", err)
	}
	if r.Err != "" {
		p.t.Fatalf("a program saw an error: %s", r.Err)
	}
	l := newLoad(p.dir, 0)
	l.files, l.ops, l.slow, l.long = r.Files, r.Ops, r.Slow, r.Long
	return l
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
		took := span{began, time.Now()}
		l.slow = max(l.slow, took.Ended.Sub(began))
		if took.Ended.Sub(began) >= time.Second {
			l.long = append(l.long, took)
		}
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

// size is of many small files and few large ones: about 0.25 MiB on average,
// because nodes on one disk keep three copies of every version for a while.
func size(rng *rand.Rand) int {
	switch rng.IntN(40) {
	case 0, 1, 2, 3:
		return 0
	case 4, 5, 6:
		return rng.IntN(2 << 20)
	case 7:
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
