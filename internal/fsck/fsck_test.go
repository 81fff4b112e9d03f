package fsck_test

import (
	"context"
	"errors"
	"maps"
	"strings"
	"testing"

	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/fsck"
	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

const pgs = 4

// still is a tree that nobody changes: a view of it is the tree itself.
type still struct{ *meta.Memory }

func (s still) View(context.Context) (meta.View, error) { return s, nil }
func (still) Close(context.Context) error               { return nil }

// moody loses its view at a query, as often as told.
type moody struct {
	still
	queries, losses int
}

func (m *moody) View(context.Context) (meta.View, error) {
	m.queries = 0
	return m, nil
}

func (m *moody) Query(ctx context.Context, q *metapb.Query) (*metapb.Answer, error) {
	if m.queries++; m.queries == 6 && m.losses > 0 {
		m.losses--
		return nil, sys.E(sys.Stale, meta.ErrViewGone)
	}
	return m.still.Query(ctx, q)
}

// nodes are stores that each hold every placement group.
type nodes map[sys.NodeID]block.Store

func (n nodes) Groups() int { return pgs }

func (n nodes) Nodes(sys.PG) []sys.NodeID {
	ids := make([]sys.NodeID, 0, len(n))
	for id := range len(n) {
		ids = append(ids, sys.NodeID(id+1))
	}
	return ids
}

func (n nodes) EachOn(ctx context.Context, id sys.NodeID, pg sys.PG, fn func(block.Info)) error {
	if n[id] == nil {
		return errors.New("no answer")
	}
	infos, err := n[id].List(ctx, pg, sys.BlockKey{}, 0)
	for _, i := range infos {
		fn(i)
	}
	return err
}

func (n nodes) HasOn(ctx context.Context, id sys.NodeID, key sys.BlockKey) (bool, error) {
	if n[id] == nil {
		return false, errors.New("no answer")
	}
	err := n[id].Get(ctx, key, 0, nil)
	return err == nil, nil
}

func (n nodes) ReadOn(ctx context.Context, id sys.NodeID, key sys.BlockKey) (int, error) {
	if n[id] == nil {
		return 0, errors.New("no answer")
	}
	return len(written), n[id].Get(ctx, key, 0, make([]byte, len(written)))
}

// written is what each block holds.
const written = "bytes"

// rotting are nodes some of which have rotten blocks.
type rotting struct {
	nodes
	rotten map[sys.NodeID]sys.BlockKey
}

func (r rotting) ReadOn(ctx context.Context, id sys.NodeID, key sys.BlockKey) (int, error) {
	if r.rotten[id] == key {
		return 0, sys.E(sys.Corrupt, "rotten")
	}
	return r.nodes.ReadOn(ctx, id, key)
}

// TestBytes: every copy is read; one that has rotted is mended by its node from a good one, and a problem when there is none.
func TestBytes(t *testing.T) {
	tree, ns, slice := cluster(t)
	second := sys.BlockKey{Slice: slice, Index: 1}
	for _, tc := range []struct {
		name   string
		rotten map[sys.NodeID]sys.BlockKey
		silent sys.NodeID
		read   int64
		sound  bool
		says   string
	}{
		{"all good", nil, 0, 6, true, ""},
		{"one copy has rotted", map[sys.NodeID]sys.BlockKey{2: second}, 0, 5, true, ""},
		{"all copies have rotted", map[sys.NodeID]sys.BlockKey{1: second, 2: second, 3: second}, 0, 3, false, "has rotted in each of its 3 copies"},
		{"all that answer have rotted", map[sys.NodeID]sys.BlockKey{1: second, 2: second}, 3, 2, false, "n3 does not tell"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var last int
			ns := maps.Clone(ns)
			if tc.silent != 0 {
				ns[tc.silent] = nil
			}
			r, err := fsck.Run(t.Context(), still{tree}, rotting{ns, tc.rotten}, fsck.Options{Bytes: true, Progress: func(phase string, done, of int) {
				if phase == "reading blocks" && of == 2 {
					last = done
				}
			}})
			if err != nil {
				t.Fatal(err)
			}
			for node := range tc.rotten {
				if r.Rotten[node.String()] != 1 {
					t.Errorf("one rotten copy on %v expected, found %v", node, r.Rotten)
				}
			}
			if r.Read != tc.read*int64(len(written)) || len(r.Rotten) != len(tc.rotten) || r.Sound() != tc.sound || !strings.Contains(strings.Join(r.Problems, "\n"), tc.says) {
				t.Errorf("read %d, rotten %v, sound %v: %q", r.Read, r.Rotten, r.Sound(), r.Problems)
			}
			if tc.silent != 0 && !r.Partial() {
				t.Errorf("a check in part expected, found %q", r.Problems)
			}
			if last != 1 {
				t.Errorf("progress ended with %d", last)
			}
		})
	}
}

// TestBytesInterrupted: whoever gives up while blocks are read gets no report.
func TestBytesInterrupted(t *testing.T) {
	tree, ns, _ := cluster(t)
	ctx, cancel := context.WithCancel(t.Context())
	_, err := fsck.Run(ctx, still{tree}, ns, fsck.Options{Bytes: true, Progress: func(phase string, _, _ int) {
		if phase == "reading blocks" {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v expected, found %v", context.Canceled, err)
	}
}

// cluster makes a tree with one file of one slice with two blocks, on three
// nodes.
func cluster(t *testing.T) (*meta.Memory, nodes, sys.SliceID) {
	t.Helper()
	ctx := context.Background()
	tree := meta.NewMemory()
	do := func(cmd *metapb.Command) *metapb.Result {
		res, err := tree.Do(ctx, cmd)
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	file := do(&metapb.Command{Op: &metapb.Command_Mknod{Mknod: &metapb.Mknod{Parent: 1, Name: []byte("f"), Type: uint32(sys.TypeRegular), Mode: 0o644}}}).Attr
	first := do(&metapb.Command{Op: &metapb.Command_AllocSlices{AllocSlices: &metapb.AllocSlices{Count: 1, Session: 1}}}).FirstSlice
	slice := sys.PlaceSlice(first, pgs)
	ns := nodes{1: block.NewMemory(), 2: block.NewMemory(), 3: block.NewMemory()}
	for _, s := range ns {
		put(t, s, sys.BlockKey{Slice: slice})
		put(t, s, sys.BlockKey{Slice: slice, Index: 1})
	}
	do(&metapb.Command{Op: &metapb.Command_Commit{Commit: &metapb.Commit{Ino: file.Ino, Slices: []*metapb.ChunkSlice{{
		Slice: &metapb.Slice{Len: sys.BlockSize + 1, Slice: uint64(slice), SliceLen: sys.BlockSize + 1}}}}}})
	return tree, ns, slice
}

func put(t *testing.T, s block.Store, key sys.BlockKey) {
	t.Helper()
	if err := s.Put(context.Background(), key, []byte(written)); err != nil {
		t.Fatal(err)
	}
}

func drop(t *testing.T, s block.Store, key sys.BlockKey) {
	t.Helper()
	if err := s.Delete(context.Background(), []sys.BlockKey{key}); err != nil {
		t.Fatal(err)
	}
}

func TestFsck(t *testing.T) {
	for _, tc := range []struct {
		name                   string
		hurt                   func(t *testing.T, ns nodes, slice sys.SliceID)
		sound                  bool
		missing, thin, orphans int64
		says                   string
	}{
		{"all there", func(*testing.T, nodes, sys.SliceID) {}, true, 0, 0, 0, ""},
		{"a copy lacks", func(t *testing.T, ns nodes, s sys.SliceID) {
			drop(t, ns[2], sys.BlockKey{Slice: s, Index: 1})
		}, true, 0, 1, 0, ""},
		{"all copies of a block are gone", func(t *testing.T, ns nodes, s sys.SliceID) {
			for _, n := range ns {
				drop(t, n, sys.BlockKey{Slice: s})
			}
		}, false, 1, 0, 0, "on none of its 3 nodes"},
		{"a block that belongs to nothing", func(t *testing.T, ns nodes, _ sys.SliceID) {
			put(t, ns[3], sys.BlockKey{Slice: sys.PlaceSlice(777, pgs)})
		}, false, 0, 0, 1, "belong to nothing"},
		{"a node is silent", func(_ *testing.T, ns nodes, _ sys.SliceID) { ns[2] = nil }, false, 0, 2, 0, "n2 does not tell"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tree, ns, slice := cluster(t)
			tc.hurt(t, ns, slice)
			r, err := fsck.Run(context.Background(), still{tree}, ns, fsck.Options{Thorough: true})
			if err != nil {
				t.Fatal(err)
			}
			if r.Sound() != tc.sound || r.Missing != tc.missing || r.Thin != tc.thin || r.Orphans != tc.orphans {
				t.Errorf("sound %v, missing %d, thin %d, orphans %d: %q", r.Sound(), r.Missing, r.Thin, r.Orphans, r.Problems)
			}
			if !strings.Contains(strings.Join(r.Problems, "\n"), tc.says) {
				t.Errorf("%q is not said in %q", tc.says, r.Problems)
			}
		})
	}
}

// lacking are nodes of which the second has no block whole.
type lacking struct{ nodes }

func (n lacking) EachOn(ctx context.Context, id sys.NodeID, pg sys.PG, fn func(block.Info)) error {
	return n.nodes.EachOn(ctx, id, pg, func(i block.Info) {
		if id == 2 {
			i.Lacks = "2 of its 4 pages"
		}
		fn(i)
	})
}

// A block that is there in part is none that a file can be read from.
func TestBlocksThatAreNotWhole(t *testing.T) {
	tree, ns, _ := cluster(t)
	put(t, ns[2], sys.BlockKey{Slice: sys.PlaceSlice(777, pgs)}) // of no file
	r, err := fsck.Run(context.Background(), still{tree}, lacking{ns}, fsck.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if r.Broken != 2 || r.Sound() || !strings.Contains(strings.Join(r.Problems, "\n"), "lacks 2 of its 4 pages") {
		t.Errorf("%d broken: %q", r.Broken, r.Problems)
	}
}

func TestReservedSlicesAreNoOrphans(t *testing.T) {
	tree, ns, _ := cluster(t)
	res, err := tree.Do(context.Background(), &metapb.Command{Op: &metapb.Command_AllocSlices{AllocSlices: &metapb.AllocSlices{Count: 1, Session: 2}}})
	if err != nil {
		t.Fatal(err)
	}
	put(t, ns[1], sys.BlockKey{Slice: sys.PlaceSlice(res.FirstSlice, pgs)})
	r, err := fsck.Run(context.Background(), still{tree}, ns, fsck.Options{})
	if err != nil || !r.Sound() {
		t.Errorf("a block that a writer has not committed yet: %v, %q", err, r.Problems)
	}
}

func TestLeaderChanges(t *testing.T) {
	tree, ns, _ := cluster(t)
	r, err := fsck.Run(context.Background(), &moody{still: still{tree}, losses: 2}, ns, fsck.Options{})
	if err != nil || !r.Sound() || r.Blocks != 2 || r.Copies != 6 || r.Tree.Files != 1 {
		t.Errorf("a check that had to start again: %+v, %v", r, err)
	}
	_, err = fsck.Run(context.Background(), &moody{still: still{tree}, losses: 100}, ns, fsck.Options{})
	if !sys.Is(err, sys.Unavailable) || !strings.Contains(err.Error(), "run it again") {
		t.Errorf("a leader that never stays: %v", err)
	}
}
