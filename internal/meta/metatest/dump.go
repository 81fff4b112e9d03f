package metatest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/prototext"

	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/dump"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// manyNames is more entries than an engine lists at once, and bigFiles have more
// bytes than one answer takes.
const (
	manyNames = 1100
	bigFiles  = 20
)

// testDump takes a tree with rows of every kind through a dump into an empty
// tree.
func testDump(t *testing.T, open func(t *testing.T) meta.Client, opts []Option) {
	run := func(name string, test func(x *tree)) bool {
		return t.Run(name, func(t *testing.T) {
			x := &tree{tb: t, c: open(t)}
			for _, opt := range opts {
				opt(x)
			}
			test(x)
		})
	}
	var original []byte
	var rows []string
	sound := run("Write", func(x *tree) {
		x.format(time.Hour)
		x.fillForDump()
		original, rows = x.dump(), x.allRows()
		// A tree that is in use is not loaded into, and nothing has changed.
		_, err := dump.Load(context.Background(), bytes.NewReader(original), x.target(), dump.Options{})
		x.refused(sys.NotEmpty, err)
		equal(x, "rows", strings.Join(x.allRows(), "\n"), strings.Join(rows, "\n"))
	})
	if !sound {
		return
	}
	run("Load", func(x *tree) {
		x.load(original)
		x.check()
		x.sameTree(rows)
		equal(x, "next inode", x.create(x.root(), "after", 0o644).Ino, uint64(sys.FirstIno)+manyInodes)
		if first := x.alloc(1, 1).Seq(); first < 1<<32 {
			x.tb.Fatalf("expected numbers far above those that the dumped cluster gave out, found %d", first)
		}
	})
	run("Interrupted", func(x *tree) {
		x.format(0)
		x.interrupted(original)
		x.load(original)
		x.check()
		x.sameTree(rows)
	})
	run("Away", func(x *tree) {
		x.load(original)
		x.must(x.do(&metapb.Command{Op: &metapb.Command_Load{Load: &metapb.Load{Step: &metapb.Load_Away{Away: &metapb.LoadAway{Moves: 7}}}}}))
		a, err := x.query(&metapb.Query{Op: &metapb.Query_TreeState{TreeState: &metapb.TreeState{}}})
		if err != nil || a.Attr != nil || a.Load != 0 || a.Moves != 7 {
			x.tb.Fatalf("expected a tree that is elsewhere, and no load, found %v, %v", a, err)
		}
		_, err = x.format1(0)
		x.refused(sys.Busy, err)
	})
}

// manyInodes is how many inodes fillForDump makes.
const manyInodes = bigFiles + 8

func (x *tree) fillForDump() {
	root := x.root()
	dir := x.mkdir(root, "dir", 0o750)
	for i := range bigFiles {
		f := x.create(dir, fmt.Sprintf("big%d", i), 0o600)
		x.must(x.commit(&metapb.Commit{Ino: f.Ino, Inline: bytes.Repeat([]byte{byte(i)}, sys.InlineMax)}))
	}
	f := x.create(root, "sliced", 0o644)
	x.write(f, 0, 1<<20)
	x.write(f, 3*sys.ChunkSize, 100)
	x.alloc(7, 9) // which nobody commits
	x.must(x.setXattr(f, "user.a", "1", 0))
	x.must(x.setXattr(f, "user.b", strings.Repeat("x", 1000), 0))
	x.must(x.setXattr(dir, "user.c", "3", 0))
	x.must(x.make(sys.TypeSymlink, root, "link", 0o777))
	x.must(x.make(sys.TypeFIFO, root, "fifo", 0o600))
	names := x.mkdir(dir, "names", 0o755)
	for i := range manyNames {
		x.must(x.link(f, names, fmt.Sprintf("name \xff %d", i)))
	}
	gone := x.create(root, "unlinked", 0o644)
	x.write(gone, 0, 5<<20)
	x.must(x.unlink(root, "unlinked"))
	cut := x.create(root, "cut", 0o644)
	x.write(cut, 0, 1000)
	x.must(x.truncate(cut, 0)) // its slice waits for the collector
	x.must(x.chown(x.create(names, "owned", 0o4755), 1000, 2000))
}

// dump returns the tree as a dump.
func (x *tree) dump() []byte {
	x.tb.Helper()
	var b bytes.Buffer
	sum, err := dump.Write(context.Background(), x.c, &metapb.DumpHeader{Cluster: "test", Pgs: 4}, &b, func(uint64) {})
	if err != nil {
		x.tb.Fatalf("dump: %v", err)
	}
	read, err := dump.Verify(bytes.NewReader(b.Bytes()))
	if err != nil || *read != *sum {
		x.tb.Fatalf("expected %+v, found %+v, %v", sum, read, err)
	}
	return b.Bytes()
}

// target is the tree as what takes steps, each of them twice, as if replies
// were lost.
func (x *tree) target() dump.Target { return &twice{x: x, left: -1} }

type twice struct {
	x    *tree
	left int // steps until the target fails; negative: it does not
}

var errCut = errors.New("cut off")

func (t *twice) Load(ctx context.Context, l *metapb.Load) (*metapb.Result, error) {
	if t.left == 0 {
		return nil, errCut
	}
	t.left--
	cmd := func() *metapb.Command { return &metapb.Command{Op: &metapb.Command_Load{Load: l}} }
	res, err := t.x.c.Do(ctx, cmd())
	if err != nil || l.GetClear() != nil {
		return res, err
	}
	return t.x.c.Do(ctx, cmd())
}

func (x *tree) load(from []byte) {
	x.tb.Helper()
	if _, err := dump.Load(context.Background(), bytes.NewReader(from), x.target(), dump.Options{Now: 1}); err != nil {
		x.tb.Fatalf("load: %v", err)
	}
}

// interrupted loads halfway, and looks whether the tree says so.
func (x *tree) interrupted(from []byte) {
	x.tb.Helper()
	_, err := dump.Load(context.Background(), bytes.NewReader(from), &twice{x: x, left: 4}, dump.Options{})
	if !errors.Is(err, errCut) {
		x.tb.Fatalf("expected the load to be cut off, found %v", err)
	}
	root := &metapb.Attr{Ino: uint64(sys.RootIno)}
	_, err = x.getAttr1(root.Ino)
	x.refused(sys.Busy, err)
	_, err = x.lookup1(root, "dir")
	x.refused(sys.Busy, err)
	_, err = x.make(sys.TypeRegular, root, "f", 0o644)
	x.refused(sys.Busy, err)
	_, err = x.alloc1(1, 1)
	x.refused(sys.Busy, err)
	_, err = x.do(&metapb.Command{Op: &metapb.Command_Purge{Purge: &metapb.Purge{Limit: 10}}})
	x.refused(sys.Busy, err)
	_, err = x.format1(0)
	x.refused(sys.Busy, err)
	_, err = dump.Write(context.Background(), x.c, &metapb.DumpHeader{}, &bytes.Buffer{}, func(uint64) {})
	x.refused(sys.Busy, err)
	// Steps of a load that another has displaced are refused.
	_, err = x.do(&metapb.Command{Op: &metapb.Command_Load{Load: &metapb.Load{Id: 12345, Step: &metapb.Load_Rows{Rows: &metapb.LoadRows{Batch: 1}}}}})
	x.refused(sys.Busy, err)
}

// allRows returns all rows as text, in order.
func (x *tree) allRows() []string {
	x.tb.Helper()
	var rows []string
	for from := (*metapb.Cursor)(nil); ; {
		a, err := x.query(&metapb.Query{Op: &metapb.Query_ScanRows{ScanRows: &metapb.ScanRows{From: from}}})
		if err != nil {
			x.tb.Fatalf("rows: %v", err)
		}
		for _, r := range a.Rows {
			text := strings.Join(strings.Fields(prototext.MarshalOptions{}.Format(r)), " ")
			rows = append(rows, text)
		}
		if from = a.Next; a.End {
			return rows
		}
	}
}

// sameTree ends the test unless the tree has exactly the rows of a tree that was
// dumped, but for what a load changes: what was reserved is freed, and slice
// numbers go on far above.
func (x *tree) sameTree(want []string) {
	x.tb.Helper()
	changed := func(rows []string) []string {
		return slices.DeleteFunc(slices.Clone(rows), func(r string) bool {
			return strings.Contains(r, fmt.Sprintf("chunk:{ino:%d ", sys.PendingIno)) ||
				strings.Contains(r, "ranges:") ||
				strings.HasPrefix(r, fmt.Sprintf("counter:{counter:%d", meta.CounterSlice)) ||
				strings.HasPrefix(r, fmt.Sprintf("counter:{counter:%d", meta.CounterFreed))
		})
	}
	found, expected := changed(x.allRows()), changed(want)
	for i := range max(len(found), len(expected)) {
		if i >= len(found) || i >= len(expected) || found[i] != expected[i] {
			x.tb.Fatalf("row %d of %d: expected %.200q, found %.200q", i, len(expected), at(expected, i), at(found, i))
		}
	}
	_, seqs := x.freed()
	equal(x, "reserved numbers that are freed", len(seqs), 9)
}

func at(list []string, i int) string {
	if i < len(list) {
		return list[i]
	}
	return "nothing"
}
