package spread

import (
	"context"
	"slices"
	"sync"

	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/sys"
)

// owedMax bounds the blocks that are remembered as missing somewhere. What is
// forgotten is found by the nodes' own healing.
const owedMax = 16 << 10

// owed remembers which nodes lack a block or hold a damaged one.
type owed struct {
	mu    sync.Mutex
	keys  map[sys.NodeID]map[sys.BlockKey]struct{}
	count int
}

// add notes that nodes should fetch key from their peers.
func (o *owed) add(key sys.BlockKey, ids ...sys.NodeID) {
	if len(ids) == 0 {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.keys == nil {
		o.keys = make(map[sys.NodeID]map[sys.BlockKey]struct{})
	}
	for _, id := range ids {
		if o.count >= owedMax {
			return
		}
		if o.keys[id] == nil {
			o.keys[id] = make(map[sys.BlockKey]struct{})
		}
		if _, known := o.keys[id][key]; !known {
			o.keys[id][key] = struct{}{}
			o.count++
		}
	}
}

// take removes and returns up to n keys that id lacks, in order.
func (o *owed) take(id sys.NodeID, n int) []sys.BlockKey {
	o.mu.Lock()
	defer o.mu.Unlock()
	var keys []sys.BlockKey
	for key := range o.keys[id] {
		if len(keys) == n {
			break
		}
		keys = append(keys, key)
		delete(o.keys[id], key)
		o.count--
	}
	if len(o.keys[id]) == 0 {
		delete(o.keys, id)
	}
	return keys
}

// debtors returns the nodes that lack something.
func (o *owed) debtors() []sys.NodeID {
	o.mu.Lock()
	defer o.mu.Unlock()
	ids := make([]sys.NodeID, 0, len(o.keys))
	for id := range o.keys {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// repairBatch is how many blocks one repair request names: few, as the node
// moves up to 4 MiB for each.
const repairBatch = 32

// repairing asks nodes to fetch what they lack.
func (s *Store) repairing() {
	tick := env.NewTicker(env.System{}, s.opt.RepairEvery)
	defer tick.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-tick.C:
		}
		for _, id := range s.owed.debtors() {
			if !s.peers.shun(id) {
				s.repairNode(id)
			}
		}
	}
}

// repairNode asks one node until nothing is left or it does not answer. Blocks
// that the node cannot get are left to its healing.
func (s *Store) repairNode(id sys.NodeID) {
	for s.ctx.Err() == nil {
		keys := s.owed.take(id, repairBatch)
		if len(keys) == 0 {
			return
		}
		ctx, cancel := context.WithTimeout(s.ctx, detachedFor)
		n, err := s.node(id)
		var failed []sys.BlockKey
		if err == nil {
			failed, err = n.repair(ctx, keys)
		}
		cancel()
		s.peers.note(id, err)
		if err != nil {
			for _, key := range keys {
				s.owed.add(key, id)
			}
			return
		}
		if len(failed) > 0 {
			s.log.Warn("a node cannot repair blocks yet", "node", id, "blocks", len(failed), "first", failed[0])
		}
	}
}
