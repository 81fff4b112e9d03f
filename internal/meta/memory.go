package meta

import (
	"context"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// Memory is a tree in this process's memory, for tests. As a Client it may be
// used concurrently; the methods of Tx, which it also has, may not.
type Memory struct {
	mu     sync.Mutex // held by Do and Query
	clock  env.Clock
	lastNs int64 // the time of the last command

	inodes   ordered[sys.Ino, *metapb.Attr]
	dirs     ordered[sys.Ino, *memoryDir]
	chunks   ordered[sys.Ino, *ordered[uint32, *metapb.Chunk]]
	xattrs   ordered[sys.Ino, *metapb.Xattrs]
	counters map[Counter]int64
}

// memoryDir is the entries of a directory by name and by cookie.
type memoryDir struct {
	names   map[string]*metapb.Dentry
	cookies ordered[uint64, string]
}

var (
	_ Tx           = (*Memory)(nil)
	_ Client       = (*Memory)(nil)
	_ OwnerScanner = (*Memory)(nil)
	_ RowScanner   = (*Memory)(nil)
)

// MemoryOption changes how NewMemory makes a tree.
type MemoryOption func(*memoryOptions)

type memoryOptions struct {
	clock       env.Clock
	retention   time.Duration
	unformatted bool
}

// WithClock makes the tree take its time from c instead of the machine.
func WithClock(c env.Clock) MemoryOption { return func(o *memoryOptions) { o.clock = c } }

// WithRetention makes unlinked inodes stay in quarantine for d. Without it d
// is 0: the next Purge frees what no KeepOpen keeps.
func WithRetention(d time.Duration) MemoryOption {
	return func(o *memoryOptions) { o.retention = d }
}

// Unformatted leaves the tree without its root, so that the first command must
// be Format.
func Unformatted() MemoryOption { return func(o *memoryOptions) { o.unformatted = true } }

// NewMemory returns a tree with an empty root, which belongs to uid 0 and has
// the mode 0755.
func NewMemory(opts ...MemoryOption) *Memory {
	o := memoryOptions{clock: env.System{}}
	for _, opt := range opts {
		opt(&o)
	}
	m := &Memory{
		clock:    o.clock,
		counters: make(map[Counter]int64),
	}
	if !o.unformatted {
		format := &metapb.Format{RetentionNs: o.retention.Nanoseconds()}
		cmd := &metapb.Command{Op: &metapb.Command_Format{Format: format}}
		if _, err := m.Do(context.Background(), cmd); err != nil {
			panic(fmt.Sprintf("meta: format of an empty tree: expected success, found %v", err))
		}
	}
	return m
}

// Do runs a command on a tree that nobody else changes meanwhile. The time is
// the clock's, but always later than that of the command before. The result
// shares no memory with the tree.
func (m *Memory) Do(ctx context.Context, cmd *metapb.Command) (*metapb.Result, error) {
	if err := ctx.Err(); err != nil {
		return nil, sys.E(sys.Op("meta.Do"), sys.Interrupted, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lastNs = max(m.clock.Wall().UnixNano(), m.lastNs+1)
	stamped := &metapb.Command{TimeNs: m.lastNs, Cred: cmd.GetCred(), Op: cmd.GetOp()}
	res, err := Apply(m, stamped)
	if err != nil {
		return nil, err
	}
	if f := res.GetFailure(); f != nil {
		return nil, f.Err()
	}
	return res, nil
}

// Query reads the tree.
func (m *Memory) Query(ctx context.Context, q *metapb.Query) (*metapb.Answer, error) {
	if err := ctx.Err(); err != nil {
		return nil, sys.E(sys.Op("meta.Query"), sys.Interrupted, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	ans, err := Read(m, q)
	if err != nil {
		return nil, err
	}
	if f := ans.GetFailure(); f != nil {
		return nil, f.Err()
	}
	return ans, nil
}

// Inode is of Tx.
func (m *Memory) Inode(ino sys.Ino) (*metapb.Attr, error) {
	a, ok := m.inodes.get(ino)
	if !ok {
		return nil, nil
	}
	return a.CloneVT(), nil
}

// SetInode is of Tx.
func (m *Memory) SetInode(ino sys.Ino, a *metapb.Attr) error {
	if a == nil {
		m.inodes.delete(ino)
		return nil
	}
	m.inodes.set(ino, a.CloneVT())
	return nil
}

// Dentry is of Tx.
func (m *Memory) Dentry(parent sys.Ino, name []byte) (*metapb.Dentry, error) {
	dir, _ := m.dirs.get(parent)
	if dir == nil {
		return nil, nil
	}
	d, ok := dir.names[string(name)]
	if !ok {
		return nil, nil
	}
	return d.CloneVT(), nil
}

// SetDentry is of Tx.
func (m *Memory) SetDentry(parent sys.Ino, name []byte, d *metapb.Dentry) error {
	dir, _ := m.dirs.get(parent)
	if dir == nil {
		dir = &memoryDir{names: make(map[string]*metapb.Dentry)}
		m.dirs.set(parent, dir)
	}
	old := dir.names[string(name)]
	if d == nil {
		if old != nil {
			delete(dir.names, string(name))
			dir.cookies.delete(old.Cookie)
		}
		if len(dir.names) == 0 {
			m.dirs.delete(parent)
		}
		return nil
	}
	if old != nil && old.Cookie != d.Cookie {
		return fmt.Errorf("meta: cookie of %q in %d: expected %d, found %d", name, parent, old.Cookie, d.Cookie)
	}
	if at, ok := dir.cookies.get(d.Cookie); ok && at != string(name) {
		return fmt.Errorf("meta: cookie %d in %d: expected it to be free for %q, found %q", d.Cookie, parent, name, at)
	}
	dir.names[string(name)] = d.CloneVT()
	dir.cookies.set(d.Cookie, string(name))
	return nil
}

// ScanDentries is of Tx.
func (m *Memory) ScanDentries(parent sys.Ino, after uint64, fn func(name []byte, d *metapb.Dentry) bool) error {
	dir, _ := m.dirs.get(parent)
	if dir == nil || after == math.MaxUint64 {
		return nil
	}
	dir.cookies.scan(after+1, func(_ uint64, name string) bool {
		return fn([]byte(name), dir.names[name].CloneVT())
	})
	return nil
}

// Chunk is of Tx.
func (m *Memory) Chunk(ino sys.Ino, n uint32) (*metapb.Chunk, error) {
	rows, _ := m.chunks.get(ino)
	if rows == nil {
		return nil, nil
	}
	c, ok := rows.get(n)
	if !ok {
		return nil, nil
	}
	return c.CloneVT(), nil
}

// SetChunk is of Tx.
func (m *Memory) SetChunk(ino sys.Ino, n uint32, c *metapb.Chunk) error {
	rows, _ := m.chunks.get(ino)
	if c == nil {
		if rows != nil {
			rows.delete(n)
			if len(rows.rows) == 0 {
				m.chunks.delete(ino)
			}
		}
		return nil
	}
	if rows == nil {
		rows = &ordered[uint32, *metapb.Chunk]{}
		m.chunks.set(ino, rows)
	}
	rows.set(n, c.CloneVT())
	return nil
}

// ScanChunks is of Tx.
func (m *Memory) ScanChunks(ino sys.Ino, from uint32, fn func(n uint32, c *metapb.Chunk) bool) error {
	if rows, ok := m.chunks.get(ino); ok {
		rows.scan(from, func(n uint32, c *metapb.Chunk) bool { return fn(n, c.CloneVT()) })
	}
	return nil
}

// Xattrs is of Tx.
func (m *Memory) Xattrs(ino sys.Ino) (*metapb.Xattrs, error) {
	if x, ok := m.xattrs.get(ino); ok {
		return x.CloneVT(), nil
	}
	return nil, nil
}

// SetXattrs is of Tx.
func (m *Memory) SetXattrs(ino sys.Ino, x *metapb.Xattrs) error {
	if x == nil {
		m.xattrs.delete(ino)
		return nil
	}
	m.xattrs.set(ino, x.CloneVT())
	return nil
}

// ScanInodes is of Tx.
func (m *Memory) ScanInodes(after sys.Ino, fn func(a *metapb.Attr) bool) error {
	if after == math.MaxUint64 {
		return nil
	}
	m.inodes.scan(after+1, func(_ sys.Ino, a *metapb.Attr) bool { return fn(a.CloneVT()) })
	return nil
}

// Counter is of Tx.
func (m *Memory) Counter(name Counter, delta int64) (int64, error) {
	if delta != 0 {
		m.counters[name] += delta
	}
	return m.counters[name], nil
}

// NextOwner is of OwnerScanner.
func (m *Memory) NextOwner(after sys.Ino) (sys.Ino, bool, error) {
	if after == math.MaxUint64 {
		return 0, false, nil
	}
	lowest, ok := sys.Ino(0), false
	for _, next := range []func(sys.Ino) (sys.Ino, bool){m.dirs.next, m.chunks.next, m.xattrs.next} {
		if ino, found := next(after + 1); found && (!ok || ino < lowest) {
			lowest, ok = ino, true
		}
	}
	return lowest, ok, nil
}

// AllDentries is of RowScanner.
func (m *Memory) AllDentries(parent sys.Ino, cookie uint64, fn func(sys.Ino, []byte, *metapb.Dentry) bool) error {
	more := true
	m.dirs.scan(parent, func(ino sys.Ino, dir *memoryDir) bool {
		if ino > parent {
			cookie = 0
		}
		dir.cookies.scan(cookie, func(_ uint64, name string) bool {
			more = fn(ino, []byte(name), dir.names[name].CloneVT())
			return more
		})
		return more
	})
	return nil
}

// AllChunks is of RowScanner.
func (m *Memory) AllChunks(ino sys.Ino, n uint32, fn func(sys.Ino, uint32, *metapb.Chunk) bool) error {
	more := true
	m.chunks.scan(ino, func(at sys.Ino, rows *ordered[uint32, *metapb.Chunk]) bool {
		if at > ino {
			n = 0
		}
		rows.scan(n, func(n uint32, c *metapb.Chunk) bool {
			more = fn(at, n, c.CloneVT())
			return more
		})
		return more
	})
	return nil
}

// AllXattrs is of RowScanner.
func (m *Memory) AllXattrs(ino sys.Ino, fn func(sys.Ino, *metapb.Xattrs) bool) error {
	m.xattrs.scan(ino, func(ino sys.Ino, x *metapb.Xattrs) bool { return fn(ino, x.CloneVT()) })
	return nil
}
