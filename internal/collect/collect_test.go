package collect_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/collect"
	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

type tree struct {
	t *testing.T
	meta.Client
}

func (tr tree) do(cmd *metapb.Command) *metapb.Result {
	tr.t.Helper()
	res, err := tr.Do(context.Background(), cmd)
	if err != nil {
		tr.t.Fatal(err)
	}
	return res
}

// now is a wall clock that a test moves.
type now struct{ at time.Time }

func (n *now) Boot() time.Duration { return time.Duration(n.at.UnixNano()) }
func (n *now) Wall() time.Time     { return n.at }

func blocks(t *testing.T, s block.Store) uint64 {
	t.Helper()
	u, err := s.Usage(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return u.Blocks
}

// TestBlocksGoOnlyAfterRetentionAndGrace follows a file from unlink to the
// deletion of its blocks, and a slice that its writer never committed.
func TestBlocksGoOnlyAfterRetentionAndGrace(t *testing.T) {
	ctx := context.Background()
	clock := &now{at: time.Unix(1_000_000, 0)}
	tr := tree{t, meta.NewMemory(meta.WithClock(clock), meta.WithRetention(time.Hour))}
	store := block.NewMemory()
	c := &collect.Collector{Tree: tr, Blocks: store, Clock: clock, Logger: slog.New(slog.DiscardHandler), Grace: time.Minute, PGs: 4}

	file := tr.do(&metapb.Command{Op: &metapb.Command_Mknod{Mknod: &metapb.Mknod{Parent: 1, Name: []byte("f"), Type: uint32(sys.TypeRegular), Mode: 0o644}}}).Attr
	first := tr.do(&metapb.Command{Op: &metapb.Command_AllocSlices{AllocSlices: &metapb.AllocSlices{Count: 2, Session: 9}}}).FirstSlice
	kept, leaked := sys.PlaceSlice(first, 4), sys.PlaceSlice(first+1, 4)
	for _, s := range []sys.SliceID{kept, leaked} {
		for i := range uint32(2) {
			if err := store.Put(ctx, sys.BlockKey{Slice: s, Index: i}, []byte("bytes")); err != nil {
				t.Fatal(err)
			}
		}
	}
	tr.do(&metapb.Command{Op: &metapb.Command_Commit{Commit: &metapb.Commit{Ino: file.Ino, Slices: []*metapb.ChunkSlice{{Slice: &metapb.Slice{
		Len: sys.BlockSize + 5, Slice: uint64(kept), SliceLen: sys.BlockSize + 5}}}}}})
	tr.do(&metapb.Command{Op: &metapb.Command_EndSession{EndSession: &metapb.EndSession{Session: 9}}})
	tr.do(&metapb.Command{Op: &metapb.Command_Unlink{Unlink: &metapb.Unlink{Parent: 1, Name: []byte("f")}}})

	for _, step := range []struct {
		after time.Duration
		want  uint64
		why   string
	}{
		{0, 4, "nothing is due"},
		{2 * time.Minute, 2, "the slice of the session that ended"},
		{59 * time.Minute, 2, "the file is purged, its blocks have their grace"},
		{2 * time.Minute, 0, "the file's blocks"},
	} {
		clock.at = clock.at.Add(step.after)
		if _, err := c.Run(ctx); err != nil {
			t.Fatal(err)
		}
		if got := blocks(t, store); got != step.want {
			t.Errorf("%s: %d blocks are left, expected %d", step.why, got, step.want)
		}
	}
	tr.do(&metapb.Command{Op: &metapb.Command_Mknod{Mknod: &metapb.Mknod{Parent: 1, Name: []byte("g"), Type: uint32(sys.TypeRegular)}}})
	tr.do(&metapb.Command{Op: &metapb.Command_Unlink{Unlink: &metapb.Unlink{Parent: 1, Name: []byte("g")}}})
	clock.at = clock.at.Add(2 * time.Hour)
	c.Hold = true
	if d, err := c.Run(ctx); err != nil || d.Steps != 0 {
		t.Errorf("a round on hold did %+v, %v", d, err)
	}
	c.Hold = false
	if d, err := c.Run(ctx); err != nil || d.Steps != 1 {
		t.Errorf("a round after it did %+v, %v", d, err)
	}
	if d, err := c.Run(ctx); err != nil || d != (collect.Done{}) {
		t.Errorf("a further round did %+v, %v", d, err)
	}
}
