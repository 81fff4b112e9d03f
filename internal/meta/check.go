package meta

import (
	"context"
	"fmt"
	"sort"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// Problem is a broken invariant of the tree.
type Problem struct {
	Ino  sys.Ino
	What string
}

// String returns "inode 17: what".
func (p Problem) String() string { return fmt.Sprintf("inode %d: %s", p.Ino, p.What) }

// CheckOptions says how Check works. The zero value is fine.
type CheckOptions struct {
	// Slice, if not nil, is called for every piece of a slice that a file
	// has, those in quarantine included, so that the caller can look for its
	// blocks. A slice with several pieces comes several times. An error stops
	// the check.
	Slice func(ino sys.Ino, chunk uint32, sl *metapb.Slice) error
	// Thorough looks every name up on its own as well, at the cost of a
	// query each.
	Thorough bool
	// ProblemsMax bounds the list of problems, 1000 when 0.
	ProblemsMax int
}

// CheckReport is what Check found.
type CheckReport struct {
	Dirs        int64     `json:"directories"`
	Files       int64     `json:"files"` // regular ones
	Others      int64     `json:"others"`
	Quarantined int64     `json:"quarantined"` // of Files and Others
	Entries     int64     `json:"entries"`     // names in directories
	Bytes       uint64    `json:"bytes"`
	Slices      int64     `json:"slices"`  // pieces of slices in files
	Freed       int64     `json:"freed"`   // slices and ranges that wait for the collector
	Pending     int64     `json:"pending"` // slice numbers that are reserved and not committed
	Problems    []Problem `json:"-"`
	More        int64     `json:"-"` // problems beyond the list
}

// Check goes through the whole tree and tests what must hold: every entry
// leads to an inode of its type, every inode has as many entries as links,
// directories form one tree under the root, chunks are within their files,
// no slice of a file is freed or uncommitted, the counters are right.
//
// It streams: its memory does not grow with the number of files, but for the
// depth of the tree, and for the collector's queue up to a million slices.
// The tree should be at rest, as a View is: what changes during the check may be
// reported as a problem. An error means that the check could not be done.
func Check(ctx context.Context, c Querier, opts CheckOptions) (*CheckReport, error) {
	if opts.ProblemsMax == 0 {
		opts.ProblemsMax = 1000
	}
	k := &checker{ctx: ctx, c: c, opts: opts, freed: make(map[uint64]bool)}
	stat, err := k.query(&metapb.Query{Op: &metapb.Query_StatFs{StatFs: &metapb.StatFS{}}})
	if err != nil {
		return nil, err
	}
	k.stat = stat
	if err := k.walk(k.checkEntry, k.checkDir); err != nil {
		return nil, err
	}
	if err := k.quarantine(k.checkQuarantined); err != nil {
		return nil, err
	}
	if err := k.inodes(k.checkInode, k.checkChunk); err != nil {
		return nil, err
	}
	k.checkStored()
	if err := k.locate(); err != nil {
		return nil, err
	}
	k.checkTotals()
	return &k.CheckReport, nil
}

// linkBuckets is into how many sums the balance of entries and links is split,
// so that an imbalance is found again with little memory.
const linkBuckets = 1 << 14

// freedKnownMax is how many freed slices the check remembers.
const freedKnownMax = 1 << 20

type checker struct {
	CheckReport
	ctx  context.Context
	c    Querier
	opts CheckOptions
	stat *metapb.Answer

	reached int64               // directories found from the root
	balance [linkBuckets]uint64 // entries less links, each times a hash of the inode
	freed   map[uint64]bool
	ranges  []*metapb.Range // that are pending, ascending
	at      *metapb.Attr    // the inode whose chunks come now
	stored  uint64          // bytes of those that came
}

func (k *checker) problem(ino sys.Ino, format string, args ...any) {
	if len(k.Problems) == k.opts.ProblemsMax {
		k.More++
		return
	}
	k.Problems = append(k.Problems, Problem{ino, fmt.Sprintf(format, args...)})
}

func (k *checker) query(q *metapb.Query) (*metapb.Answer, error) { return k.c.Query(k.ctx, q) }

func (k *checker) readDir(ino sys.Ino, after uint64) (*metapb.Answer, error) {
	return k.query(&metapb.Query{Op: &metapb.Query_ReadDir{
		ReadDir: &metapb.ReadDir{Ino: uint64(ino), After: after, Limit: ReadDirMax, Attrs: true},
	}})
}

// mix is a hash of an inode number (splitmix64).
func mix(ino uint64) uint64 {
	ino += 0x9e3779b97f4a7c15
	ino = (ino ^ ino>>30) * 0xbf58476d1ce4e5b9
	ino = (ino ^ ino>>27) * 0x94d049bb133111eb
	return ino ^ ino>>31
}

func bucket(ino uint64) int { return int(mix(ino) % linkBuckets) }

// level is a directory that the walk is in.
type level struct {
	dir     *metapb.Attr
	after   uint64
	end     bool
	pending []*metapb.Attr // its subdirectories of the last page, not yet walked
	subdirs uint32
}

// walk goes from the root through all directories that their ".." agrees to,
// so that it ends whatever is broken. entry is called for each name; dir for
// each directory when all of its names were seen.
func (k *checker) walk(entry func(dir *metapb.Attr, e *metapb.Entry, last uint64) error, dir func(l *level)) error {
	ans, err := k.query(&metapb.Query{Op: &metapb.Query_GetAttr{GetAttr: &metapb.GetAttr{Ino: uint64(sys.RootIno)}}})
	if err != nil {
		return err
	}
	stack := []*level{{dir: ans.Attr}}
	for len(stack) > 0 {
		l := stack[len(stack)-1]
		switch {
		case len(l.pending) > 0:
			next := l.pending[0]
			l.pending = l.pending[1:]
			stack = append(stack, &level{dir: next})
		case l.end:
			dir(l)
			stack = stack[:len(stack)-1]
		default:
			if err := k.page(l, entry); err != nil {
				return err
			}
		}
	}
	return nil
}

// page reads on in a directory.
func (k *checker) page(l *level, entry func(dir *metapb.Attr, e *metapb.Entry, last uint64) error) error {
	ans, err := k.readDir(sys.Ino(l.dir.Ino), l.after)
	if err != nil {
		return err
	}
	l.end = ans.End || len(ans.Entries) == 0
	for _, e := range ans.Entries {
		if err := entry(l.dir, e, l.after); err != nil {
			return err
		}
		l.after = e.Cookie
		if e.Attr == nil || !isDir(e.Attr) {
			continue
		}
		l.subdirs++
		if e.Attr.Parent == l.dir.Ino && e.Attr.Ino != l.dir.Ino && e.Attr.Ino != uint64(sys.RootIno) {
			l.pending = append(l.pending, e.Attr)
		}
	}
	return nil
}

func (k *checker) checkEntry(dir *metapb.Attr, e *metapb.Entry, last uint64) error {
	k.Entries++
	ino := sys.Ino(dir.Ino)
	if err := checkName(e.Name); err != nil {
		k.problem(ino, "its entry %q: %v", e.Name, err)
	}
	if e.Cookie <= last || e.Cookie < FirstCookie || e.Cookie >= dir.NextCookie {
		k.problem(ino, "its entry %q has the cookie %d, after %d, before %d", e.Name, e.Cookie, last, dir.NextCookie)
	}
	if e.Attr == nil {
		k.problem(ino, "its entry %q leads to inode %d, which does not exist", e.Name, e.Ino)
		return nil
	}
	if e.Type != e.Attr.Type {
		k.problem(ino, "its entry %q has the type %d, but inode %d has the type %d", e.Name, e.Type, e.Ino, e.Attr.Type)
	}
	if isDir(e.Attr) && e.Attr.Parent != dir.Ino {
		k.problem(sys.Ino(e.Ino), "its parent is inode %d, but the entry %q of inode %d leads to it", e.Attr.Parent, e.Name, dir.Ino)
	}
	k.balance[bucket(e.Ino)] += mix(e.Ino)
	if !k.opts.Thorough {
		return nil
	}
	ans, err := k.query(&metapb.Query{Op: &metapb.Query_Lookup{Lookup: &metapb.Lookup{Parent: dir.Ino, Name: e.Name}}})
	if err != nil && !sys.Is(err, sys.NotExist) && !sys.Is(err, sys.Corrupt) {
		return err
	}
	if err != nil || ans.Attr.Ino != e.Ino {
		k.problem(ino, "its entry %q is listed as inode %d, but looking it up gives %v (%v)", e.Name, e.Ino, ans.GetAttr().GetIno(), err)
	}
	return nil
}

func (k *checker) checkDir(l *level) {
	k.reached++
	if l.dir.Nlink != 2+l.subdirs {
		k.problem(sys.Ino(l.dir.Ino), "it has %d links and %d subdirectories", l.dir.Nlink, l.subdirs)
	}
}

// quarantine calls fn for each entry of the quarantine.
func (k *checker) quarantine(fn func(e *metapb.Entry)) error {
	after := uint64(0)
	for {
		ans, err := k.readDir(sys.QuarantineIno, after)
		if err != nil {
			return err
		}
		for _, e := range ans.Entries {
			fn(e)
			after = e.Cookie
		}
		if ans.End || len(ans.Entries) == 0 {
			return nil
		}
	}
}

func (k *checker) checkQuarantined(e *metapb.Entry) {
	deadline, ino, ok := parseQuarantineName(e.Name)
	switch {
	case !ok || ino != sys.Ino(e.Ino):
		k.problem(sys.Ino(e.Ino), "its entry in the quarantine has the name %q", e.Name)
	case e.Attr == nil:
		k.problem(ino, "it is in the quarantine and does not exist")
		return
	case e.Attr.Nlink != 0 || isDir(e.Attr):
		k.problem(ino, "it is in the quarantine with %d links and the type %d", e.Attr.Nlink, e.Attr.Type)
	case e.Attr.DeadlineNs != deadline:
		k.problem(ino, "its deadline is %d, but %d in the quarantine", e.Attr.DeadlineNs, deadline)
	}
	if e.Attr != nil {
		k.balance[bucket(e.Ino)] += mix(e.Ino)
	}
}

// inodes calls inode for each inode and then chunk for each of its chunks.
func (k *checker) inodes(inode func(a *metapb.Attr), chunk func(c *metapb.NumberedChunk) error) error {
	scan := &metapb.ScanInodes{Limit: ScanMax}
	for {
		ans, err := k.query(&metapb.Query{Op: &metapb.Query_ScanInodes{ScanInodes: scan}})
		if err != nil {
			return err
		}
		for i, in := range ans.Inodes {
			if i > 0 || scan.FromChunk == 0 {
				inode(in.Attr)
			}
			for _, c := range in.Chunks {
				if err := chunk(c); err != nil {
					return err
				}
			}
		}
		if ans.End || len(ans.Inodes) == 0 {
			return nil
		}
		last := ans.Inodes[len(ans.Inodes)-1].Attr.Ino
		scan = &metapb.ScanInodes{After: last, Limit: ScanMax, FromChunk: ans.NextChunk}
		if ans.NextChunk != 0 {
			scan.After--
		}
	}
}

// links is how many entries an inode ought to have.
func links(a *metapb.Attr) uint32 {
	switch {
	case a.Ino == uint64(sys.RootIno):
		return 0
	case isDir(a):
		return 1
	}
	return max(a.Nlink, 1) // one in the quarantine
}

// checkStored closes an inode: all of its chunks have come.
func (k *checker) checkStored() {
	if a := k.at; a != nil && !hidden(sys.Ino(a.Ino)) && !a.Purging && a.Type != 0 && a.Stored != k.stored {
		k.problem(sys.Ino(a.Ino), "it stores %d bytes, its attributes say %d", k.stored, a.Stored)
	}
}

func (k *checker) checkInode(a *metapb.Attr) {
	k.checkStored()
	k.at, k.stored = a, 0
	ino := sys.Ino(a.Ino)
	if hidden(ino) {
		return
	}
	switch {
	case a.Type == 0:
		k.problem(ino, "it does not exist and has rows")
		return
	case isDir(a):
		k.Dirs++
	case isRegular(a):
		k.Files++
	default:
		k.Others++
	}
	k.Bytes += a.Size
	if !isDir(a) && a.Nlink == 0 {
		k.Quarantined++
	}
	k.balance[bucket(a.Ino)] -= uint64(links(a)) * mix(a.Ino)
	switch {
	case a.Type > 0xff || !sys.FileType(a.Type).Valid():
		k.problem(ino, "its type is %d", a.Type)
	case a.Mode > sys.ModePerm:
		k.problem(ino, "its mode is %o", a.Mode)
	case a.Type == uint32(sys.TypeSymlink) && a.Size != uint64(len(a.Target)):
		k.problem(ino, "its size is %d and its target has %d bytes", a.Size, len(a.Target))
	case !isRegular(a) && a.Type != uint32(sys.TypeSymlink) && a.Size != 0:
		k.problem(ino, "its size is %d, but it has no bytes", a.Size)
	case a.Size > FileSizeMax:
		k.problem(ino, "its size is %d", a.Size)
	case (a.DeadlineNs != 0) != (a.Nlink == 0):
		k.problem(ino, "it has %d links and the deadline %d", a.Nlink, a.DeadlineNs)
	case a.Ino > k.stat.LastIno:
		k.problem(ino, "the highest inode given out is %d", k.stat.LastIno)
	}
}

func (k *checker) checkChunk(c *metapb.NumberedChunk) error {
	ino := sys.Ino(k.at.Ino)
	switch ino {
	case sys.PendingIno:
		k.checkPending(c)
		return nil
	case sys.FreedIno:
		k.noteFreed(c.Chunk)
		return nil
	}
	k.stored += storedBytes(c.Chunk)
	start := uint64(c.Number) * sys.ChunkSize
	row := row{chunk: c.Chunk}
	switch {
	case hidden(ino) || !isRegular(k.at):
		k.problem(ino, "it has chunk %d and is no regular file", c.Number)
		return nil
	case row.empty():
		k.problem(ino, "its chunk %d has an empty row", c.Number)
	case len(c.Chunk.Inline) > 0 && c.Number != 0:
		k.problem(ino, "its chunk %d has inline bytes", c.Number)
	case len(c.Chunk.Inline) > sys.InlineMax || uint64(len(c.Chunk.Inline)) > k.at.Size:
		k.problem(ino, "it has %d inline bytes and the size %d", len(c.Chunk.Inline), k.at.Size)
	case len(c.Chunk.Slices) > SlicesMax:
		k.problem(ino, "its chunk %d has %d slices", c.Number, len(c.Chunk.Slices))
	}
	for _, sl := range c.Chunk.Slices {
		k.Slices++
		k.checkSlice(c.Number, start, sl)
		if sl.Slice == 0 || k.opts.Slice == nil {
			continue
		}
		if err := k.opts.Slice(ino, c.Number, sl); err != nil {
			return err
		}
	}
	return nil
}

func (k *checker) checkSlice(chunk uint32, start uint64, sl *metapb.Slice) {
	ino, id := sys.Ino(k.at.Ino), sys.SliceID(sl.Slice)
	if cause := badSlice(sl); cause != "" {
		k.problem(ino, "its chunk %d has %s: %v", chunk, cause, sl)
		return
	}
	if end := start + uint64(sl.At) + uint64(sl.Len); end > k.at.Size {
		k.problem(ino, "its chunk %d has slice %v up to byte %d, its size is %d", chunk, id, end, k.at.Size)
	}
	if sl.Slice == 0 {
		return
	}
	if id.Seq() > k.stat.LastSlice {
		k.problem(ino, "its chunk %d has slice %v, which was never reserved", chunk, id)
	}
	if k.freed[sl.Slice] {
		k.problem(ino, "its chunk %d has slice %v, which is freed", chunk, id)
	}
	i := sort.Search(len(k.ranges), func(i int) bool { return k.ranges[i].First > id.Seq() })
	if i > 0 && id.Seq()-k.ranges[i-1].First < uint64(k.ranges[i-1].Count) {
		k.problem(ino, "its chunk %d has slice %v, which is not committed", chunk, id)
	}
}

func (k *checker) checkPending(c *metapb.NumberedChunk) {
	low := uint64(c.Number) * pendingRow
	next := low
	for _, r := range c.Chunk.Ranges {
		if r.Count == 0 || r.First < next || r.First+uint64(r.Count) > low+pendingRow ||
			r.First+uint64(r.Count)-1 > k.stat.LastSlice {
			k.problem(sys.PendingIno, "row %d has the range %v out of place", c.Number, r)
		}
		next = r.First + uint64(r.Count)
		k.Pending += int64(r.Count)
		k.ranges = append(k.ranges, r)
	}
	if len(c.Chunk.Ranges) == 0 || len(c.Chunk.Slices) > 0 {
		k.problem(sys.PendingIno, "row %d has %d ranges and %d slices", c.Number, len(c.Chunk.Ranges), len(c.Chunk.Slices))
	}
}

func (k *checker) noteFreed(c *metapb.Chunk) {
	k.Freed += int64(len(c.Slices) + len(c.Ranges))
	for _, sl := range c.Slices {
		if len(k.freed) < freedKnownMax {
			k.freed[sl.Slice] = true
		}
	}
}

// locate finds the inodes whose entries and links do not balance, by counting
// those in the buckets that do not add up to zero.
func (k *checker) locate() error {
	broken := false
	for _, sum := range k.balance {
		broken = broken || sum != 0
	}
	if !broken {
		return nil
	}
	found := make(map[uint64]uint32)
	count := func(e *metapb.Entry) {
		if e.Attr != nil && k.balance[bucket(e.Ino)] != 0 && len(found) < freedKnownMax {
			found[e.Ino]++
		}
	}
	err := k.walk(func(_ *metapb.Attr, e *metapb.Entry, _ uint64) error {
		count(e)
		return nil
	}, func(*level) {})
	if err != nil {
		return err
	}
	if err := k.quarantine(count); err != nil {
		return err
	}
	return k.inodes(func(a *metapb.Attr) {
		if hidden(sys.Ino(a.Ino)) || a.Type == 0 || k.balance[bucket(a.Ino)] == 0 {
			return
		}
		if n := found[a.Ino]; n != links(a) {
			k.problem(sys.Ino(a.Ino), "it has %d links and %d entries", a.Nlink, n)
		}
	}, func(*metapb.NumberedChunk) error { return nil })
}

func (k *checker) checkTotals() {
	if k.Dirs != k.reached {
		k.problem(sys.RootIno, "%d of %d directories are reached from it", k.reached, k.Dirs)
	}
	if n := k.Dirs + k.Files + k.Others; uint64(n) != k.stat.UsedInodes {
		k.problem(sys.RootIno, "there are %d inodes, the counter says %d", n, k.stat.UsedInodes)
	}
	if k.Bytes != k.stat.UsedBytes {
		k.problem(sys.RootIno, "all sizes are %d bytes, the counter says %d", k.Bytes, k.stat.UsedBytes)
	}
}
