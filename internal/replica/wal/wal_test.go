package wal

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/koinon/koinon/internal/env/envfs"
	"github.com/koinon/koinon/internal/sys"
)

const testSegment = 64 << 10

// content is what a replay has found.
type content struct {
	entries map[uint64]map[uint64]string // group, slot
	states  map[uint64]string
	gaps    int
	order   []string
}

func open(t testing.TB, fs envfs.FS, exists bool) (*Log, content, Report) {
	t.Helper()
	l, c, r, err := tryOpen(fs, exists)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	return l, c, r
}

func tryOpen(fs envfs.FS, exists bool) (*Log, content, Report, error) {
	c := content{entries: map[uint64]map[uint64]string{}, states: map[uint64]string{}}
	l, r, err := Open(Options{FS: fs, Dir: "/log", SegmentBytes: testSegment, Exists: exists}, func(r Record) error {
		switch r.Type {
		case Entry:
			if c.entries[r.Group] == nil {
				c.entries[r.Group] = map[uint64]string{}
			}
			c.entries[r.Group][r.Slot] = string(r.Body)
			c.order = append(c.order, fmt.Sprintf("%d/%d", r.Group, r.Slot))
		case State:
			c.states[r.Group] = string(r.Body)
		case Gap:
			c.gaps++
		}
		return nil
	})
	return l, c, r, err
}

func entry(group, slot uint64, body string) Record {
	return Record{Type: Entry, Group: group, Slot: slot, Body: []byte(body)}
}

func state(group uint64, body string) Record {
	return Record{Type: State, Group: group, Body: []byte(body)}
}

// put appends records and waits until they are durable.
func put(t testing.TB, l *Log, recs ...Record) {
	t.Helper()
	done := make(chan error, 1)
	l.Append(recs, func(err error) { done <- err })
	if err := <-done; err != nil {
		t.Fatalf("append: %v", err)
	}
}

func closeLog(t testing.TB, l *Log) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
}

func TestReplayGivesBackWhatWasAppended(t *testing.T) {
	fs := vfs.NewMem()
	l, _, _ := open(t, fs, false)
	put(t, l, entry(1, 1, "one"), entry(2, 1, "other"), state(1, "s1"))
	put(t, l, Record{Type: Entry, Group: 1, Slot: 2, Body: []byte("tw"), More: []byte("o")}, state(1, "s2"))
	put(t, l, entry(1, 1, "one again"))
	closeLog(t, l)
	l, c, r := open(t, fs, true)
	defer closeLog(t, l)
	if r.Damaged != nil || r.TornBytes != 0 || r.Records != 6 {
		t.Fatalf("6 sound records expected, found %+v", r)
	}
	if c.entries[1][1] != "one again" || c.entries[1][2] != "two" || c.entries[2][1] != "other" || c.states[1] != "s2" {
		t.Fatalf("replayed: %+v", c)
	}
	for slot, want := range map[uint64]string{1: "one again", 2: "two"} {
		var got string
		if err := l.Read(1, slot, slot, 0, func(_ uint64, b []byte) bool { got = string(b); return true }); err != nil || got != want {
			t.Fatalf("read slot %d: %q expected, found %q, %v", slot, want, got, err)
		}
	}
}

func TestManySegmentsRecycleAndKeepState(t *testing.T) {
	fs := vfs.NewMem()
	l, _, _ := open(t, fs, false)
	body := strings.Repeat("x", 4000)
	put(t, l, state(1, "promise"), state(2, "quiet"))
	for slot := uint64(1); slot <= 200; slot++ {
		put(t, l, entry(1, slot, fmt.Sprintf("%d%s", slot, body)))
		if slot > 20 && slot%10 == 0 {
			l.Truncate(1, slot-20)
		}
	}
	if n := l.Stats().Segments; n > 4 {
		t.Fatalf("at most 4 segments expected after truncation, found %d", n)
	}
	n := 0
	err := l.Read(1, 190, 250, 1<<20, func(slot uint64, b []byte) bool {
		if !bytes.HasPrefix(b, fmt.Appendf(nil, "%dx", slot)) {
			t.Errorf("slot %d holds %.10q", slot, b)
		}
		n++
		return true
	})
	if err != nil || n != 11 {
		t.Fatalf("11 entries expected, found %d, %v", n, err)
	}
	closeLog(t, l)
	l, c, r := open(t, fs, true)
	defer closeLog(t, l)
	if r.Damaged != nil || c.states[1] != "promise" || c.states[2] != "quiet" || len(c.entries[1]) < 20 {
		t.Fatalf("states and tail expected, found %+v %d entries, states %v", r, len(c.entries[1]), c.states)
	}
	names, err := fs.List("/log")
	if err != nil || len(names) > 8 {
		t.Fatalf("at most 8 files expected, found %v, %v", names, err)
	}
}

// TestCrashLosesNothingDurable crashes at random moments, with random parts of
// what was not synced, and demands every record that was reported durable.
func TestCrashLosesNothingDurable(t *testing.T) {
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 1))
		fs := vfs.NewCrashableMem()
		slot, exists := uint64(0), false
		durable := map[uint64]string{}
		for life := range 5 {
			l, c, r := open(t, fs, exists)
			if !exists {
				put(t, l, entry(1, 1<<40, "first"))
			}
			exists = true
			if r.Damaged != nil {
				t.Fatalf("seed %d life %d: no damage expected, found %v", seed, life, r.Damaged)
			}
			for s, want := range durable {
				if c.entries[1][s] != want {
					t.Fatalf("seed %d life %d: slot %d: %.20q expected, found %.20q", seed, life, s, want, c.entries[1][s])
				}
			}
			var acked atomic.Uint64
			acked.Store(slot)
			n := rng.IntN(40)
			bodies := map[uint64]string{}
			done := make(chan struct{}, n+1)
			for range n {
				slot++
				s := slot
				bodies[s] = fmt.Sprint(life, " ", strings.Repeat("y", rng.IntN(6000)))
				l.Append([]Record{entry(1, s, bodies[s]), state(1, fmt.Sprint(s))}, func(err error) {
					if err == nil {
						acked.Store(s)
					}
					done <- struct{}{}
				})
			}
			for range rng.IntN(n + 1) {
				<-done
			}
			for s := uint64(1); s <= acked.Load(); s++ {
				if b, ok := bodies[s]; ok {
					durable[s] = b
				}
			}
			clone := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: rng})
			closeLog(t, l)
			fs = clone
		}
	}
}

func TestTornTailIsCut(t *testing.T) {
	fs := vfs.NewMem()
	l, _, _ := open(t, fs, false)
	put(t, l, entry(1, 1, "kept"))
	put(t, l, entry(1, 2, "torn"), entry(1, 3, "torn too"))
	at := l.position
	closeLog(t, l)
	// The last batch is records of 56 bytes each: hurt its first one.
	poke(t, fs, 1, at-2*56+50)
	l, c, r := open(t, fs, true)
	if r.Damaged != nil || r.TornBytes != 112 {
		t.Fatalf("112 torn bytes expected, found %+v", r)
	}
	if len(c.entries[1]) != 1 {
		t.Fatalf("entry 1 alone expected, found %v", c.entries)
	}
	put(t, l, entry(1, 2, "new"))
	closeLog(t, l)
	l, c, r = open(t, fs, true)
	defer closeLog(t, l)
	if r.Damaged != nil || r.TornBytes != 0 || c.entries[1][2] != "new" || c.entries[1][3] != "" {
		t.Fatalf("the new entry alone expected, found %+v %v", r, c.entries)
	}
}

// poke changes one byte of a segment.
func poke(t testing.TB, fs envfs.FS, segment uint64, at int64) {
	t.Helper()
	f, err := fs.OpenReadWrite(fs.PathJoin("/log", segmentName(segment)), category)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0xff
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestDamageBeforeTheTailIsReportedOnce(t *testing.T) {
	for _, tc := range []struct {
		name    string
		segment uint64
		at      int64
	}{
		{"first record", 1, headerBytes + 50},
		{"header of the first segment", 1, 20},
		{"first record of a later segment", 2, headerBytes + 10},
		{"header of a later segment", 2, 3},
		{"length of a record", 1, headerBytes + 5},
	} {
		t.Run(tc.name, func(t *testing.T) {
			fs := vfs.NewMem()
			l, _, _ := open(t, fs, false)
			for slot := uint64(1); slot <= 30; slot++ {
				put(t, l, entry(1, slot, strings.Repeat("z", 5000)), state(1, fmt.Sprint(slot)))
			}
			closeLog(t, l)
			poke(t, fs, tc.segment, tc.at)
			l, c, r := open(t, fs, true)
			if r.Damaged == nil || c.gaps == 0 || !sys.Is(r.Damaged, sys.Corrupt) {
				t.Fatalf("damage expected, found %+v and %d gaps", r, c.gaps)
			}
			if c.states[1] != "30" || len(c.entries[1]) < 20 {
				t.Fatalf("what is readable expected, found state %q and %d entries", c.states[1], len(c.entries[1]))
			}
			put(t, l, state(1, "damage noted"))
			closeLog(t, l)
			l, c, r = open(t, fs, true)
			defer closeLog(t, l)
			if r.Damaged != nil || c.states[1] != "damage noted" {
				t.Fatalf("the damage once only expected, found %+v, state %q", r, c.states[1])
			}
		})
	}
}

func TestLogThatIsGoneIsDamage(t *testing.T) {
	fs := vfs.NewMem()
	l, _, r := open(t, fs, true)
	defer closeLog(t, l)
	if r.Damaged == nil {
		t.Fatal("damage expected, found none")
	}
}

func TestMissingSegmentIsDamage(t *testing.T) {
	fs := vfs.NewMem()
	l, _, _ := open(t, fs, false)
	for slot := uint64(1); slot <= 40; slot++ {
		put(t, l, entry(1, slot, strings.Repeat("z", 5000)))
	}
	closeLog(t, l)
	if err := fs.Remove("/log/" + segmentName(2)); err != nil {
		t.Fatal(err)
	}
	l, _, r := open(t, fs, true)
	defer closeLog(t, l)
	if r.Damaged == nil {
		t.Fatal("damage expected, found none")
	}
}

// TestCutFileIsDamage: a segment that is shorter than it was made has lost
// records that may have been durable, wherever it was cut.
func TestCutFileIsDamage(t *testing.T) {
	for _, keep := range []int64{0, 10, headerUsed, headerBytes, headerBytes + 60, headerBytes + 500, testSegment - 1} {
		fs := vfs.NewMem()
		l, _, _ := open(t, fs, false)
		for slot := uint64(1); slot <= 12; slot++ {
			put(t, l, entry(1, slot, strings.Repeat("z", 40)), state(1, fmt.Sprint(slot)))
		}
		closeLog(t, l)
		cut(t, fs, 1, keep)
		if l.next != nil { // whether or not the next one was made ahead
			if err := fs.Remove("/log/" + segmentName(2)); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
		}
		l, c, r := open(t, fs, true)
		if r.Damaged == nil || c.gaps == 0 {
			t.Errorf("cut to %d bytes: damage expected, found %+v and %d gaps", keep, r, c.gaps)
		}
		put(t, l, entry(1, 20, "goes on"), state(1, "repaired"))
		closeLog(t, l)
		l, c, r = open(t, fs, true)
		if r.Damaged != nil || c.states[1] != "repaired" || c.entries[1][20] != "goes on" {
			t.Errorf("cut to %d bytes, and written to since: found %+v, %v", keep, r, c)
		}
		closeLog(t, l)
	}
}

// cut keeps the first bytes of a segment.
func cut(t testing.TB, fs envfs.FS, segment uint64, keep int64) {
	t.Helper()
	name := fs.PathJoin("/log", segmentName(segment))
	f, err := fs.OpenReadWrite(name, category)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, keep)
	if keep > 0 {
		if _, err := f.ReadAt(b, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(f.Close(), fs.Remove(name)); err != nil {
		t.Fatal(err)
	}
	f, err = fs.Create(name, category)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestMissingActiveSegmentIsDamage: the one that was made ahead is not the next
// one of those that are left.
func TestMissingActiveSegmentIsDamage(t *testing.T) {
	fs := vfs.NewMem()
	l, _, _ := open(t, fs, false)
	for slot := uint64(1); len(l.segs) < 2; slot++ {
		put(t, l, entry(1, slot, strings.Repeat("z", 5000)))
	}
	if _, err := l.awaitNext(); err != nil { // it is made ahead
		t.Fatal(err)
	}
	closeLog(t, l)
	if err := fs.Remove("/log/" + segmentName(2)); err != nil {
		t.Fatal(err)
	}
	l, _, r := open(t, fs, true)
	if r.Damaged == nil || !strings.Contains(r.Damaged.Error(), segmentName(2)) {
		t.Fatalf("damage expected, found %+v", r)
	}
	put(t, l, entry(1, 90, "goes on"), state(1, "repaired"))
	closeLog(t, l)
	l, c, r := open(t, fs, true)
	defer closeLog(t, l)
	if r.Damaged != nil || c.entries[1][90] != "goes on" {
		t.Fatalf("the damage once only expected, found %+v", r)
	}
}

// syncFS fails to sync the data of files that it created, when told to.
type syncFS struct {
	vfs.FS
	failing *atomic.Bool
}

func (s syncFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := s.FS.Create(name, c)
	return syncFile{f, s.failing}, err
}

type syncFile struct {
	vfs.File
	failing *atomic.Bool
}

func (f syncFile) SyncData() error {
	if f.failing.Load() {
		return errors.New("I/O error")
	}
	return f.File.SyncData()
}

// misdirectedFS reads somewhere else than it is asked to, when told to.
type misdirectedFS struct {
	vfs.FS
	by *atomic.Int64 // bytes
}

func (m misdirectedFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := m.FS.Create(name, c)
	return misdirectedFile{f, m.by}, err
}

type misdirectedFile struct {
	vfs.File
	by *atomic.Int64
}

func (m misdirectedFile) ReadAt(b []byte, at int64) (int, error) {
	return m.File.ReadAt(b, at+m.by.Load())
}

// TestMisdirectedRead: the disk gives another record of the same size, sound in
// itself. It is not taken for the one that was asked for, also when it is of the
// same slot: of another group, or of an older ballot.
func TestMisdirectedRead(t *testing.T) {
	var by atomic.Int64
	l, _, _ := open(t, misdirectedFS{vfs.NewMem(), &by}, false)
	defer closeLog(t, l)
	put(t, l, entry(1, 1, "old"), entry(2, 1, "two"), entry(1, 2, "abc"), entry(1, 1, "new"))
	read := func() (got string, err error) {
		err = l.Read(1, 1, 1, 0, func(_ uint64, b []byte) bool { got = string(b); return true })
		return got, err
	}
	for back, what := range map[int64]string{3: "an older record of the slot", 2: "another group's record of the slot", 1: "another slot's record"} {
		by.Store(-back * recordSize(len("new")))
		if got, err := read(); !sys.Is(err, sys.Corrupt) {
			t.Errorf("%s is read: sys.Corrupt expected, found %q, %v", what, got, err)
		}
	}
	by.Store(0)
	if got, err := read(); err != nil || got != "new" {
		t.Errorf("%q expected, found %q, %v", "new", got, err)
	}
}

// TestFailedSyncPoisons: nothing is acknowledged after a sync failed.
func TestFailedSyncPoisons(t *testing.T) {
	var failing atomic.Bool
	l, _, _ := open(t, syncFS{vfs.NewMem(), &failing}, false)
	put(t, l, entry(1, 1, "a"))
	failing.Store(true)
	for i := range 2 {
		done := make(chan error, 1)
		l.Append([]Record{entry(1, 2, "b")}, func(err error) { done <- err })
		if err := <-done; err == nil {
			t.Fatalf("append %d after a failed sync: an error expected, found none", i)
		}
		failing.Store(false)
	}
	if l.Err() == nil {
		t.Fatal("Err: an error expected, found nil")
	}
	closeLog(t, l)
}

// TestFullDiskIsSurvived: appends wait while the next segment cannot be made,
// and go on when there is space.
func TestFullDiskIsSurvived(t *testing.T) {
	var full atomic.Bool
	inj := errorfs.InjectorFunc(func(op errorfs.Op) error {
		if full.Load() && op.Kind == errorfs.OpCreate {
			return syscall.ENOSPC
		}
		return nil
	})
	l, _, _ := open(t, errorfs.Wrap(vfs.NewMem(), inj), false)
	defer func() { closeLog(t, l) }()
	put(t, l, entry(1, 1, "a"))
	full.Store(true)
	done := make(chan error, 100)
	for slot := uint64(2); slot < 102; slot++ {
		l.Append([]Record{entry(1, slot, strings.Repeat("b", 3000))}, func(err error) { done <- err })
	}
	deadline := time.Now().Add(5 * time.Second)
	for !l.NoSpace() && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	if !l.NoSpace() || l.Err() != nil {
		t.Fatalf("a full and sound log expected, found NoSpace %v, %v", l.NoSpace(), l.Err())
	}
	full.Store(false)
	for range 100 {
		if err := <-done; err != nil {
			t.Fatalf("append on a disk that has space again: %v", err)
		}
	}
	if l.NoSpace() {
		t.Fatal("space expected, found NoSpace")
	}
}

// TestFullDiskAtTheStart: what a log is opened for fails when there is no room
// for the first segment, and works when there is.
func TestFullDiskAtTheStart(t *testing.T) {
	var full atomic.Bool
	full.Store(true)
	fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if full.Load() && op.Kind == errorfs.OpFileWriteAt {
			return syscall.ENOSPC
		}
		return nil
	}))
	l, _, _ := open(t, fs, false)
	done := make(chan error, 1)
	l.Append([]Record{entry(1, 1, "a")}, func(err error) { done <- err })
	if err := <-done; !sys.Is(err, sys.NoSpace) {
		t.Fatalf("sys.NoSpace expected, found %v", err)
	}
	closeLog(t, l)
	full.Store(false)
	l, _, _ = open(t, fs, false)
	put(t, l, entry(1, 1, "a"))
	closeLog(t, l)
}

func TestNewerFormatIsRefused(t *testing.T) {
	fs := vfs.NewMem()
	l, _, _ := open(t, fs, false)
	put(t, l, entry(1, 1, "a"))
	closeLog(t, l)
	f, err := fs.OpenReadWrite("/log/"+segmentName(1), category)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, headerBytes)
	if _, err := f.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	forgeVersion(b, formatVersion+1)
	if _, err := f.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := tryOpen(fs, true); !sys.Is(err, sys.NotSupported) {
		t.Fatalf("sys.NotSupported expected, found %v", err)
	}
}

func TestTooLargeRecordIsRefused(t *testing.T) {
	l, _, _ := open(t, vfs.NewMem(), false)
	defer closeLog(t, l)
	done := make(chan error, 1)
	l.Append([]Record{entry(1, 1, strings.Repeat("x", testSegment))}, func(err error) { done <- err })
	if err := <-done; !sys.Is(err, sys.TooBig) {
		t.Fatalf("sys.TooBig expected, found %v", err)
	}
	put(t, l, entry(1, 1, "small"))
}

func BenchmarkAppend(b *testing.B) {
	l, _, err := Open(Options{FS: envfs.Disk, Dir: b.TempDir()}, func(Record) error { return nil })
	if err != nil {
		b.Fatal(err)
	}
	defer closeLog(b, l)
	put(b, l, entry(1, 1, "warm"))
	body := strings.Repeat("x", 200)
	b.ResetTimer()
	for i := range b.N {
		put(b, l, entry(1, uint64(i+2), body))
	}
}
