// Package fsck tests whether a tree is sound: the metadata by meta.Check, and
// for every piece of every file whether its blocks are on each replica that
// should hold them, and, when asked to, whether their bytes are still those that
// were written. It changes nothing.
package fsck

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// Tree gives views of the tree to walk.
type Tree interface {
	View(ctx context.Context) (meta.View, error)
}

// Replicas tells who holds blocks.
type Replicas interface {
	// Groups is the number of parts in which the blocks are listed.
	Groups() int
	// Nodes lists who should hold a placement group. Node 0 is an engine from
	// outside, which holds all.
	Nodes(pg sys.PG) []sys.NodeID
	// EachOn tells fn which blocks of a part one node has.
	EachOn(ctx context.Context, node sys.NodeID, pg sys.PG, fn func(block.Info)) error
	// HasOn reports whether one node has a block.
	HasOn(ctx context.Context, node sys.NodeID, key sys.BlockKey) (bool, error)
	// ReadOn reads all of a block that one node has, tests it, and returns its
	// size in bytes: sys.Corrupt when it has rotted there, sys.NotExist when it is gone.
	ReadOn(ctx context.Context, node sys.NodeID, key sys.BlockKey) (int, error)
}

// holder names one that holds blocks.
func holder(node sys.NodeID) string {
	if node == 0 {
		return "the block store"
	}
	return node.String()
}

// Options of Run.
type Options struct {
	// Thorough looks every name up on its own as well.
	Thorough bool
	// Bytes reads every copy of every block that files need.
	Bytes bool
	// Progress, if not nil, is told what is being done and how far it is; of
	// is 0 where that is not known. It is called by one goroutine at a time.
	Progress func(phase string, done, of int)
}

// Report is what Run found. The tree is sound when Problems is empty.
type Report struct {
	Tree     *meta.CheckReport `json:"tree"`
	Blocks   int64             `json:"blocks"`   // that files need
	Copies   int64             `json:"copies"`   // of them, on all nodes
	Missing  int64             `json:"missing"`  // blocks with no copy at all
	Broken   int64             `json:"broken"`   // blocks of which a part is missing
	Thin     int64             `json:"thin"`     // blocks with some copies but not all; nodes heal them by themselves
	Read     int64             `json:"read"`     // bytes of copies that were read and tested, see Options.Bytes
	Rotten   map[string]int64  `json:"rotten"`   // by node: copies whose bytes are not those that were written; nodes mend them from good ones by themselves
	Orphans  int64             `json:"orphans"`  // blocks that no file, quarantine, writer or queue knows of
	Silent   []string          `json:"silent"`   // nodes that did not answer
	Problems []string          `json:"problems"` // in words
}

const problemsMax = 1000

// Sound says whether nothing is wrong. Blocks that lack a copy are being
// healed, as are those with a rotten one beside a good one, and count as sound.
func (r *Report) Sound() bool { return len(r.Problems) == 0 }

// Partial says that nothing is wrong but that some nodes did not answer, so
// that not everything was checked.
func (r *Report) Partial() bool {
	return len(r.Silent) > 0 && len(r.Problems) == len(r.Silent)
}

func (r *Report) problem(format string, args ...any) {
	if len(r.Problems) < problemsMax {
		r.Problems = append(r.Problems, fmt.Sprintf(format, args...))
	}
}

// checker is a run. It holds a word or two for every block of the cluster.
type checker struct {
	opts   Options
	tree   meta.View
	blocks Replicas
	report *Report
	copies map[sys.BlockKey]uint8   // how many nodes have a block
	need   map[sys.BlockKey]sys.Ino // blocks that files have, and one of these files
	lacks  map[sys.BlockKey]string  // what is missing of blocks that are not whole
	silent map[sys.NodeID]error
}

// starts is how often a check starts again when the leader changes.
const starts = 3

// closeMax bounds letting go of a view, which ends by itself as well.
const closeMax = 5 * time.Second

// Run checks everything as it is at one point, whatever is changed meanwhile:
// it holds a view of the tree, under which no block is deleted. A change of
// leader, or a database that was away, ends the view, and Run starts again, a few times. An error means that
// the check could not be done.
func Run(ctx context.Context, tree Tree, blocks Replicas, opts Options) (*Report, error) {
	if opts.Progress == nil {
		opts.Progress = func(string, int, int) {}
	}
	for n := 1; ; n++ {
		r, err := run(ctx, tree, blocks, opts)
		if !errors.Is(err, meta.ErrViewGone) {
			return r, err
		}
		if n == starts {
			return nil, sys.E(sys.Op("fsck"), sys.Unavailable, fmt.Sprintf(
				"the leader changed during the check, or its database was away, %d times in a row: run it again when `koinon status` shows a leader that stays", starts))
		}
		opts.Progress("the leader has changed, or its database was away: starting again", n, starts)
	}
}

func run(ctx context.Context, tree Tree, blocks Replicas, opts Options) (*Report, error) {
	c := &checker{opts: opts, blocks: blocks, report: &Report{Rotten: map[string]int64{}, Silent: []string{}, Problems: []string{}}, copies: map[sys.BlockKey]uint8{},
		need: map[sys.BlockKey]sys.Ino{}, lacks: map[sys.BlockKey]string{}, silent: map[sys.NodeID]error{}}
	// Blocks are listed before the tree is looked at: those that belong to
	// nothing then never will. What is put afterwards is asked for again.
	if err := c.list(ctx); err != nil {
		return nil, err
	}
	view, err := tree.View(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeMax)
		defer cancel()
		_ = view.Close(ctx) // it ends by itself where this fails
	}()
	c.tree = view
	for _, step := range []func(context.Context) error{c.walk, c.compare, c.orphans, c.read, c.held} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	return c.report, nil
}

// held fails when the view has ended: blocks may have been deleted since.
func (c *checker) held(ctx context.Context) error {
	_, err := c.tree.Query(ctx, &metapb.Query{Op: &metapb.Query_StatFs{StatFs: &metapb.StatFS{}}})
	return err
}

func (c *checker) list(ctx context.Context) error {
	groups := c.blocks.Groups()
	for pg := range groups {
		c.opts.Progress("listing blocks", pg, groups)
		for _, node := range c.blocks.Nodes(sys.PG(pg)) {
			if c.silent[node] != nil {
				continue
			}
			err := c.listOn(ctx, node, sys.PG(pg))
			if ctx.Err() != nil {
				return err
			}
			if err != nil {
				c.mute(node, "does not tell which blocks it has", err)
			}
		}
	}
	c.opts.Progress("listing blocks", groups, groups)
	return nil
}

// mute notes that a node does not answer, and is asked no more.
func (c *checker) mute(node sys.NodeID, what string, err error) {
	if c.silent[node] == nil {
		c.silent[node] = err
		c.report.Silent = append(c.report.Silent, holder(node))
		c.report.problem("%s %s: %v", holder(node), what, err)
	}
}

// listOn counts the blocks of one holder.
func (c *checker) listOn(ctx context.Context, node sys.NodeID, pg sys.PG) error {
	listed := 0
	return c.blocks.EachOn(ctx, node, pg, func(i block.Info) {
		c.copies[i.Key]++
		if i.Lacks != "" {
			c.lacks[i.Key] = i.Lacks
		}
		if listed++; node == 0 && listed%block.ListMax == 0 {
			c.opts.Progress("listing blocks", listed, 0)
		}
	})
}

func (c *checker) walk(ctx context.Context) error {
	n := 0
	rep, err := meta.Check(ctx, c.tree, meta.CheckOptions{Thorough: c.opts.Thorough, ProblemsMax: problemsMax,
		Slice: func(ino sys.Ino, _ uint32, s *metapb.Slice) error {
			if n++; n%1000 == 0 {
				c.opts.Progress("walking the tree", n, 0)
			}
			c.needs(ino, s)
			return nil
		}})
	if err != nil {
		return err
	}
	c.report.Tree = rep
	for _, p := range rep.Problems {
		c.report.problem("%v", p)
	}
	if rep.More > 0 {
		c.report.problem("and %d more problems of the tree", rep.More)
	}
	return nil
}

// needs notes the blocks that a piece of a slice reads from.
func (c *checker) needs(ino sys.Ino, s *metapb.Slice) {
	if s.Slice == 0 || s.Len == 0 {
		return
	}
	for i := s.Off / sys.BlockSize; i <= (s.Off+s.Len-1)/sys.BlockSize; i++ {
		c.need[sys.BlockKey{Slice: sys.SliceID(s.Slice), Index: i}] = ino
	}
}

// broken tells the blocks that files need and that are not whole.
func (c *checker) broken() {
	for _, key := range slices.SortedFunc(maps.Keys(c.lacks), order) {
		if ino, needed := c.need[key]; needed {
			c.report.Broken++
			c.report.problem("block %v of file %v lacks %s: reading it there gives EIO; write the file again, or restore it from a backup", key, ino, c.lacks[key])
		}
	}
}

// heldEvery is after how many blocks looked for the view is used, so that it
// does not end.
const heldEvery = 256

// compare holds what files need against what nodes have.
func (c *checker) compare(ctx context.Context) error {
	c.report.Blocks = int64(len(c.need))
	c.broken()
	var doubtful []sys.BlockKey
	for key := range c.need {
		n := int(c.copies[key])
		c.report.Copies += int64(n)
		if n < len(c.blocks.Nodes(key.Slice.PG())) {
			doubtful = append(doubtful, key)
		}
	}
	slices.SortFunc(doubtful, order)
	for i, key := range doubtful {
		c.opts.Progress("looking again for blocks", i, len(doubtful))
		if i%heldEvery == 0 {
			if err := c.held(ctx); err != nil {
				return err
			}
		}
		n, err := c.count(ctx, key)
		if err != nil {
			return err
		}
		want := len(c.blocks.Nodes(key.Slice.PG()))
		switch {
		case n == 0 && !c.someSilent(key):
			c.report.Missing++
			c.report.problem("block %v of file %v is on none of its %d nodes: restore the file from a backup", key, c.need[key], want)
		case n < want:
			c.report.Thin++
		}
	}
	return nil
}

// someSilent says that a node that should have a block does not answer: whether it has it is not known.
func (c *checker) someSilent(key sys.BlockKey) bool {
	return slices.ContainsFunc(c.blocks.Nodes(key.Slice.PG()), func(n sys.NodeID) bool { return c.silent[n] != nil })
}

func order(a, b sys.BlockKey) int {
	return cmp.Or(cmp.Compare(a.Slice, b.Slice), cmp.Compare(a.Index, b.Index))
}

// count asks again who has a block.
func (c *checker) count(ctx context.Context, key sys.BlockKey) (int, error) {
	n := 0
	for _, node := range c.blocks.Nodes(key.Slice.PG()) {
		if c.silent[node] != nil {
			continue
		}
		has, err := c.blocks.HasOn(ctx, node, key)
		if err != nil && ctx.Err() != nil {
			return 0, err
		}
		if has {
			n++
		}
	}
	return n, nil
}

// orphans counts blocks that nobody knows of. What waits in the collector's
// queue, and what writers have reserved, is known.
func (c *checker) orphans(ctx context.Context) error {
	known := map[uint64]bool{} // sequence numbers
	for _, ino := range []sys.Ino{sys.FreedIno, sys.PendingIno} {
		if err := c.queued(ctx, ino, known); err != nil {
			return err
		}
	}
	orphans := map[sys.SliceID]int{}
	for key := range c.copies {
		if _, ok := c.need[key]; !ok && !known[key.Slice.Seq()] && !c.partOfNeeded(key) {
			orphans[key.Slice]++
		}
	}
	looked := 0
	for s, n := range orphans {
		if looked++; looked%heldEvery == 0 {
			if err := c.held(ctx); err != nil {
				return err
			}
		}
		still, err := c.count(ctx, sys.BlockKey{Slice: s})
		if err != nil {
			return err
		}
		if still > 0 {
			c.report.Orphans += int64(n)
			c.report.problem("%d blocks of slice %v belong to nothing", n, s)
		}
	}
	return nil
}

// partOfNeeded says whether some piece of the block's slice is in a file: the
// rest of the slice goes with it.
func (c *checker) partOfNeeded(key sys.BlockKey) bool {
	for i := range uint32(sys.ChunkSize / sys.BlockSize) {
		if _, ok := c.need[sys.BlockKey{Slice: key.Slice, Index: i}]; ok {
			return true
		}
	}
	return false
}

// queued collects the slices that rows of a reserved inode name.
func (c *checker) queued(ctx context.Context, ino sys.Ino, known map[uint64]bool) error {
	for from, more := uint32(0), true; more; {
		a, err := c.tree.Query(ctx, &metapb.Query{Op: &metapb.Query_ScanInodes{
			ScanInodes: &metapb.ScanInodes{After: uint64(ino) - 1, Limit: 1, FromChunk: from}}})
		if err != nil {
			return err
		}
		if len(a.Inodes) != 1 || a.Inodes[0].GetAttr().GetIno() != uint64(ino) {
			return nil // its absence is among meta.Check's problems
		}
		for _, n := range a.Inodes[0].Chunks {
			for _, s := range n.Chunk.Slices {
				known[sys.SliceID(s.Slice).Seq()] = true
			}
			for _, r := range n.Chunk.Ranges {
				for seq := r.First; seq < r.First+uint64(r.Count); seq++ {
					known[seq] = true
				}
			}
		}
		from, more = a.NextChunk, a.NextChunk != 0
	}
	return nil
}
