package spread

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/koinon/koinon/internal/placement"
	"github.com/koinon/koinon/internal/sys"
)

// writtenMax bounds the slices that are remembered as written and not synced.
// Nodes sync by themselves long before so many more are written.
const writtenMax = 128 << 10

// written remembers which blocks of which slices were put and not synced, so
// that Sync knows what must be there.
type written struct {
	mu     sync.Mutex
	slices map[sys.SliceID][]uint32 // indexes, unordered
	order  []sys.SliceID            // oldest first, may name slices that are gone
}

func (w *written) add(key sys.BlockKey) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.slices == nil {
		w.slices = make(map[sys.SliceID][]uint32)
	}
	have, known := w.slices[key.Slice]
	if !slices.Contains(have, key.Index) {
		w.slices[key.Slice] = append(have, key.Index)
	}
	if known {
		return
	}
	w.order = append(w.order, key.Slice)
	for len(w.slices) > writtenMax || len(w.order) > 2*writtenMax {
		delete(w.slices, w.order[0])
		w.order = w.order[1:]
	}
}

// of returns the blocks of a slice that were put and not synced.
func (w *written) of(id sys.SliceID) []uint32 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.slices[id])
}

// synced forgets blocks.
func (w *written) synced(id sys.SliceID, indexes []uint32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	left := slices.DeleteFunc(w.slices[id], func(i uint32) bool { return slices.Contains(indexes, i) })
	if len(left) == 0 {
		delete(w.slices, id)
	} else {
		w.slices[id] = left
	}
}

// Sync implements block.Store. Each node that holds one of the slices gets one
// request. A node's answer counts for the blocks that it names; every block
// that was put through this store, or that any node holds, needs a quorum of
// them. When a live node lacks one, it is made to fetch it first.
func (s *Store) Sync(ctx context.Context, ids []sys.SliceID) error {
	const op = sys.Op("spread.Sync")
	if len(ids) == 0 {
		return nil
	}
	ids = slices.Clone(ids)
	slices.Sort(ids)
	ids = slices.Compact(ids)
	return s.withTable(ctx, op, func(t *placement.Table) error {
		y := newSyncing(s, t, ids)
		if err := y.run(ctx); err != nil {
			return err
		}
		for _, id := range ids {
			s.written.synced(id, y.expected[id])
		}
		return nil
	})
}

// syncing is one Sync under one table.
type syncing struct {
	s *Store
	t *placement.Table
	// slices of each node, and the blocks that must be there of each slice.
	nodes    map[sys.NodeID][]sys.SliceID
	expected map[sys.SliceID][]uint32
	// held: which nodes have made a block durable. heard: how many nodes
	// answered for a slice.
	held   map[sys.BlockKey][]sys.NodeID
	heard  map[sys.SliceID][]sys.NodeID
	failed []answer
}

func newSyncing(s *Store, t *placement.Table, ids []sys.SliceID) *syncing {
	y := &syncing{s: s, t: t, nodes: make(map[sys.NodeID][]sys.SliceID), expected: make(map[sys.SliceID][]uint32),
		held: make(map[sys.BlockKey][]sys.NodeID), heard: make(map[sys.SliceID][]sys.NodeID)}
	for _, id := range ids {
		y.expected[id] = s.written.of(id)
		for _, node := range t.Nodes(id.PG()) {
			y.nodes[node] = append(y.nodes[node], id)
		}
	}
	return y
}

// run asks all nodes, and returns as soon as every slice has its quorum.
func (y *syncing) run(ctx context.Context) error {
	const op = sys.Op("spread.Sync")
	for id := range y.expected {
		if len(y.t.Nodes(id.PG())) == 0 {
			return sys.E(op, sys.Invalid, sys.Subject(id.String()), "the cluster has no such placement group")
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	y.ask(ctx, y.nodes)
	lacking := y.lacking()
	if len(lacking) > 0 && ctx.Err() == nil {
		y.ask(ctx, y.fill(ctx, lacking))
		lacking = y.lacking()
	}
	if len(lacking) == 0 {
		return nil
	}
	if len(y.failed) == 0 {
		return sys.E(op, sys.Unavailable, sys.Subject(lacking[0].String()),
			fmt.Sprintf("a block is not on a quorum of its nodes %v", y.t.Nodes(lacking[0].PG())))
	}
	return combine(op, sys.Subject(lacking[0].String()), y.failed)
}

// synced is one node's answer.
type synced struct {
	answer
	slices []sys.SliceID
	held   []sys.BlockKey
}

// ask sends the requests and takes in answers until nothing is lacking or all
// have come.
func (y *syncing) ask(ctx context.Context, nodes map[sys.NodeID][]sys.SliceID) {
	answers := make(chan synced, len(nodes))
	for id, ids := range nodes {
		if !y.s.spawn(func() { answers <- y.askNode(ctx, id, ids) }) {
			answers <- synced{answer: answer{id, errClosed("spread.Sync")}}
		}
	}
	for range len(nodes) {
		a := <-answers
		if a.err != nil {
			y.failed = append(y.failed, a.answer)
			continue
		}
		for _, id := range a.slices {
			y.heard[id] = append(y.heard[id], a.id)
		}
		for _, key := range a.held {
			if !slices.Contains(y.held[key], a.id) {
				y.held[key] = append(y.held[key], a.id)
			}
		}
		if len(y.lacking()) == 0 {
			return
		}
	}
}

// syncBatch is how many slices one request names.
const syncBatch = 1024

func (y *syncing) askNode(ctx context.Context, id sys.NodeID, ids []sys.SliceID) synced {
	a := synced{answer: answer{id: id}, slices: ids}
	n, err := y.s.node(id)
	for batch := range slices.Chunk(ids, syncBatch) {
		var held []sys.BlockKey
		if err == nil {
			held, err = n.sync(ctx, y.t.Epoch, batch)
		}
		a.held = append(a.held, held...)
	}
	if ctx.Err() == nil {
		y.s.peers.note(id, err)
	}
	a.err = err
	return a
}

// lacking returns the slices of which something is not on a quorum.
func (y *syncing) lacking() []sys.SliceID {
	// Without a record of what was put, what any node holds must be there.
	seen := make(map[sys.SliceID]bool)
	for key, nodes := range y.held {
		if len(nodes) < y.quorum(key.Slice) && len(y.expected[key.Slice]) == 0 {
			seen[key.Slice] = true
		}
	}
	var lacking []sys.SliceID
	for id, indexes := range y.expected {
		quorum := y.quorum(id)
		bad := seen[id] || len(y.heard[id]) < quorum
		for _, index := range indexes {
			bad = bad || len(y.held[sys.BlockKey{Slice: id, Index: index}]) < quorum
		}
		if bad {
			lacking = append(lacking, id)
		}
	}
	slices.Sort(lacking)
	return lacking
}

func (y *syncing) quorum(id sys.SliceID) int { return placement.Quorum(len(y.t.Nodes(id.PG()))) }

// fill makes nodes that answered fetch the blocks of slices that they lack and
// others hold. It returns whom to ask again for which slices.
func (y *syncing) fill(ctx context.Context, lacking []sys.SliceID) map[sys.NodeID][]sys.SliceID {
	missing := make(map[sys.NodeID][]sys.BlockKey)
	again := make(map[sys.NodeID][]sys.SliceID)
	for key, nodes := range y.held {
		if _, bad := slices.BinarySearch(lacking, key.Slice); !bad || len(nodes) == 0 {
			continue
		}
		for _, id := range y.heard[key.Slice] {
			if !slices.Contains(nodes, id) {
				missing[id] = append(missing[id], key)
				if !slices.Contains(again[id], key.Slice) {
					again[id] = append(again[id], key.Slice)
				}
			}
		}
	}
	var wg sync.WaitGroup
	for id, keys := range missing {
		wg.Go(func() {
			n, err := y.s.node(id)
			if err == nil {
				_, err = n.repair(ctx, keys)
			}
			if err != nil {
				y.s.log.Warn("a node cannot fetch blocks that must be synced", "node", id, "blocks", len(keys), "err", err)
			}
		})
	}
	wg.Wait()
	return again
}
