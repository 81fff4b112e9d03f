package hosts

import (
	"errors"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/koinon/koinon/internal/sim/world"
)

const (
	dir    = "/data"
	logDir = dir + "/log"
	state  = dir + "/state"
	sector = 512
)

// disk is a node's disk during one life of its process. What is in the log's
// directory goes through logFile: its syncs take time and may fail, reads may
// be misdirected, and a crash keeps any part of what was not synced. Of other
// files a crash keeps what was synced. Pebble's goroutines use those.
type disk struct {
	*vfs.MemFS
	c     *cluster
	proc  *world.Process
	files map[string]*content // of the log, by name
	syncs uint64

	oldState *vfs.MemFS // state as it was some time ago

	slowUntil world.Instant // syncs take long
	failing   bool          // the next sync fails
	open      bool          // reads of the log may fail
	dead      bool          // what happens now does not count
	full      atomic.Bool
}

// content is what is known of a log file.
type content struct {
	pending []extent // written and not synced, in order
	synced  []extent // records, in order
}

type extent struct {
	name string
	at   int64
	data []byte // of pending ones
	size int64
	sync uint64 // counts the syncs of the log
}

// next returns the disk as the next process finds it.
func (d *disk) next(proc *world.Process) *disk {
	return &disk{MemFS: d.MemFS, c: d.c, proc: proc, files: d.files, syncs: d.syncs, oldState: d.oldState}
}

// GetDiskUsage implements vfs.FS.
func (d *disk) GetDiskUsage(string) (vfs.DiskUsage, error) {
	u := vfs.DiskUsage{TotalBytes: 1 << 40, AvailBytes: 1 << 39, UsedBytes: 1 << 39}
	if d.full.Load() {
		u.AvailBytes = 0
	}
	return u, nil
}

// Create implements vfs.FS.
func (d *disk) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	return d.wrap(name)(d.MemFS.Create(name, category))
}

// OpenReadWrite implements vfs.FS.
func (d *disk) OpenReadWrite(name string, category vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	return d.wrap(name)(d.MemFS.OpenReadWrite(name, category, opts...))
}

// Rename implements vfs.FS. A log file that is renamed begins anew.
func (d *disk) Rename(from, to string) error {
	if path.Dir(from) == logDir {
		if c := d.files[from]; c != nil {
			delete(d.files, from)
			d.files[to] = c
			c.synced = nil
		}
	}
	return d.MemFS.Rename(from, to)
}

// Remove implements vfs.FS.
func (d *disk) Remove(name string) error {
	if path.Dir(name) == logDir {
		delete(d.files, name)
	}
	return d.MemFS.Remove(name)
}

func (d *disk) wrap(name string) func(vfs.File, error) (vfs.File, error) {
	return func(f vfs.File, err error) (vfs.File, error) {
		if err != nil || path.Dir(name) != logDir {
			return f, err
		}
		if d.files[name] == nil {
			d.files[name] = &content{}
		}
		return &logFile{File: f, d: d, content: d.files[name]}, nil
	}
}

// logFile is an open file of the log.
type logFile struct {
	vfs.File
	d       *disk
	content *content
}

// WriteAt implements vfs.File. A full disk takes only what has its place already.
func (f *logFile) WriteAt(b []byte, at int64) (int, error) {
	if f.d.full.Load() && !f.d.dead {
		st, err := f.Stat()
		if err == nil && at+int64(len(b)) > st.Size() {
			err = syscall.ENOSPC
		}
		if err != nil {
			return 0, err
		}
	}
	if !f.d.dead {
		f.content.pending = append(f.content.pending, extent{at: at, data: slices.Clone(b), size: int64(len(b))})
	}
	return f.File.WriteAt(b, at)
}

// ReadAt implements vfs.File.
func (f *logFile) ReadAt(b []byte, at int64) (int, error) {
	c := f.d.c
	if f.d.open && !f.d.dead && c.Chance(c.shape.readError) {
		if c.Chance(0.5) {
			return 0, syscall.EIO
		}
		at = max(0, at-sector*int64(1+c.Rand.IntN(8)))
	}
	return f.File.ReadAt(b, at)
}

// Sync implements vfs.File.
func (f *logFile) Sync() error { return f.sync(f.File.Sync) }

// SyncData implements vfs.File.
func (f *logFile) SyncData() error { return f.sync(f.File.SyncData) }

func (f *logFile) sync(do func() error) error {
	d, c := f.d, f.d.c
	if d.dead {
		return nil
	}
	took := c.Pick(50*world.Microsecond, 2*world.Millisecond)
	if c.Chance(c.shape.syncSlow) || c.Now < d.slowUntil {
		took = c.Pick(5*world.Millisecond, 200*world.Millisecond)
	}
	n := len(f.content.pending)
	d.proc.Sleep(took)
	if d.dead {
		return nil
	}
	if d.failing {
		d.failing = false
		return syscall.EIO
	}
	d.syncs++
	for _, e := range f.content.pending[:n] {
		if slices.ContainsFunc(e.data, func(b byte) bool { return b != 0 }) {
			f.content.synced = append(f.content.synced, extent{at: e.at, size: e.size, sync: d.syncs})
		}
	}
	f.content.pending = slices.Delete(f.content.pending, 0, n)
	return do()
}

// crash returns what a crash leaves of the disk. What the process still does to
// this one, as its remains are cleared away, does not count.
func (d *disk) crash() *disk {
	c := d.c
	left := d.next(nil)
	how := c.Rand.IntN(5)
	keep := vfs.CrashCloneCfg{}
	if how == killed {
		keep = vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(0, 0))}
	}
	left.MemFS = d.MemFS.CrashClone(keep)
	d.dead, d.files = true, map[string]*content{}
	for _, name := range slices.Sorted(maps.Keys(left.files)) {
		if _, err := left.Stat(name); err != nil {
			delete(left.files, name)
			continue
		}
		f := left.files[name]
		for _, e := range f.pending {
			c.stats.Torn++
			c.must(left.tear(name, e, how))
		}
		f.pending = nil
	}
	return left
}

// killed is when only the process ends: the machine keeps what was written. In
// other cases it goes down too, and what was not synced is lost, in part, to a
// point, or becomes something else.
const killed = 4

// tear writes some of the sectors of a write that was not synced, or what was
// never written.
func (d *disk) tear(name string, e extent, how int) error {
	c := d.c
	f, err := d.MemFS.OpenReadWrite(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	upTo := c.Rand.Int64N(e.size + 1)
	for at := int64(0); at < e.size; at += sector {
		b := e.data[at:min(at+sector, e.size)]
		switch {
		case how == 0, how == 1 && at >= upTo, how == 2 && c.Chance(0.5):
			continue
		case how == 3 && c.Chance(0.2):
			for i := range b {
				b[i] = byte(c.Rand.Uint32())
			}
		}
		if _, err := f.WriteAt(b, e.at+at); err != nil {
			return err
		}
	}
	return errors.Join(f.Sync(), f.Close())
}

// damage spoils a sector that holds what was synced, but for the last batch: a
// reader cannot tell damage there from a torn write. It is false when there is
// nothing to spoil.
func (d *disk) damage() bool {
	var all []extent
	last := uint64(0)
	for _, name := range slices.Sorted(maps.Keys(d.files)) {
		for _, e := range d.files[name].synced {
			e.name = name
			all, last = append(all, e), max(last, e.sync)
		}
	}
	all = slices.DeleteFunc(all, func(e extent) bool { return e.sync == last })
	if len(all) == 0 {
		return false
	}
	e := all[len(all)-1-d.c.Rand.IntN(min(len(all), 40))]
	f, err := d.MemFS.OpenReadWrite(e.name, vfs.WriteCategoryUnspecified)
	d.c.must(err)
	at := e.at + d.c.Rand.Int64N(e.size)
	_, err = f.WriteAt([]byte(strings.Repeat("#", int(min(sector, e.at+e.size-at)))), at)
	d.c.must(errors.Join(err, f.Sync(), f.Close()))
	return true
}

// loseLog removes the log.
func (d *disk) loseLog() {
	d.c.must(d.RemoveAll(logDir))
	d.files = map[string]*content{}
	d.syncDir()
}

// loseState puts what it was some time ago into the state's place, or nothing.
func (d *disk) loseState(old *vfs.MemFS) {
	d.c.must(d.RemoveAll(state))
	if old != nil {
		_, err := vfs.Clone(old, d.MemFS, state, state, vfs.CloneSync)
		d.c.must(err)
	}
	d.syncDir()
}

// keepState puts the state aside, for loseState.
func (d *disk) keepState() {
	d.oldState = vfs.NewMem()
	_, err := vfs.Clone(d.MemFS, d.oldState, state, state)
	d.c.must(err)
}

func (d *disk) syncDir() {
	f, err := d.OpenDir(dir)
	if err == nil {
		err = errors.Join(f.Sync(), f.Close())
	}
	d.c.must(err)
}
