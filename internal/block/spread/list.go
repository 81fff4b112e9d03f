package spread

import (
	"context"
	"slices"

	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/placement"
	"github.com/koinon/koinon/internal/sys"
)

// each calls fn for every node of ids at once and returns their answers in the
// order of ids.
func (s *Store) each(ids []sys.NodeID, fn func(i int, id sys.NodeID, n node) error) []answer {
	answers := make([]answer, len(ids))
	done := make(chan struct{}, len(ids))
	for i, id := range ids {
		run := func() {
			n, err := s.node(id)
			if err == nil {
				err = fn(i, id, n)
			}
			s.peers.note(id, err)
			answers[i] = answer{id, err}
			done <- struct{}{}
		}
		if !s.spawn(run) {
			answers[i] = answer{id, errClosed("spread.Store")}
			done <- struct{}{}
		}
	}
	for range ids {
		<-done
	}
	return answers
}

// Delete implements block.Store. Every node that holds or held the blocks must
// confirm; otherwise the error names those that did not, and the call is to be
// repeated. Nodes tell each other of deletions when they heal, so a node that
// missed one does not bring the block back.
func (s *Store) Delete(ctx context.Context, keys []sys.BlockKey) error {
	const op = sys.Op("spread.Delete")
	if len(keys) == 0 {
		return nil
	}
	return s.withTable(ctx, op, func(t *placement.Table) error {
		byNode := make(map[sys.NodeID][]sys.BlockKey)
		for _, key := range keys {
			for _, list := range [][]sys.NodeID{t.Nodes(key.Slice.PG()), t.Sources(key.Slice.PG())} {
				for _, id := range list {
					byNode[id] = append(byNode[id], key)
				}
			}
			s.written.synced(key.Slice, []uint32{key.Index})
		}
		ids := make([]sys.NodeID, 0, len(byNode))
		for id := range byNode {
			ids = append(ids, id)
		}
		slices.Sort(ids)
		answers := s.each(ids, func(_ int, id sys.NodeID, n node) error {
			for batch := range slices.Chunk(byNode[id], keysMax) {
				if err := n.delete(ctx, t.Epoch, batch); err != nil {
					return err
				}
			}
			return nil
		})
		if !slices.ContainsFunc(answers, func(a answer) bool { return a.err != nil }) {
			return nil
		}
		return combine(op, sys.Subject("unconfirmed deletion"), answers)
	})
}

// List implements block.Store. It joins the lists of the group's nodes, of
// which a quorum must answer; a block that one of them has deleted is left
// out.
func (s *Store) List(ctx context.Context, pg sys.PG, after sys.BlockKey, limit int) ([]block.Info, error) {
	const op = sys.Op("spread.List")
	limit = block.ListLimit(limit)
	var infos []block.Info
	err := s.withTable(ctx, op, func(t *placement.Table) error {
		infos = infos[:0]
		ids := t.Nodes(pg)
		from := after
		for len(infos) < limit && len(ids) > 0 {
			want := min(limit-len(infos)+16, block.ListMax)
			lists := make([][]block.Known, len(ids))
			answers := s.each(ids, func(i int, _ sys.NodeID, n node) (err error) {
				lists[i], err = n.list(ctx, pg, from, want)
				return err
			})
			failed := slices.DeleteFunc(answers, func(a answer) bool { return a.err == nil })
			if len(ids)-len(failed) < placement.Quorum(len(ids)) {
				return combine(op, "", failed)
			}
			var more bool
			infos, from, more = join(infos, lists, want)
			if !more {
				break
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return infos[:min(limit, len(infos))], nil
}

// join appends what is known from several nodes' lists of up to want keys, in
// order, without deleted blocks. It stops where a list that may go on ends,
// and returns that key.
func join(infos []block.Info, lists [][]block.Known, want int) (joined []block.Info, last sys.BlockKey, more bool) {
	for _, list := range lists {
		if len(list) >= want {
			if end := list[len(list)-1].Key; !more || end.Less(last) {
				last, more = end, true
			}
		}
	}
	var all []block.Known
	for _, list := range lists {
		all = append(all, list...)
	}
	slices.SortFunc(all, func(a, b block.Known) int { return block.CompareKeys(a.Key, b.Key) })
	for i := 0; i < len(all); {
		key, size, deleted := all[i].Key, 0, false
		for ; i < len(all) && all[i].Key == key; i++ {
			size = max(size, all[i].Size)
			deleted = deleted || all[i].Deleted()
		}
		if more && last.Less(key) {
			break
		}
		if !deleted {
			infos = append(infos, block.Info{Key: key, Size: size})
		}
	}
	return infos, last, more
}

// Usage implements block.Store: the sum over the nodes that answer. It is
// Unavailable when none does.
func (s *Store) Usage(ctx context.Context) (block.Usage, error) {
	const op = sys.Op("spread.Usage")
	var total block.Usage
	err := s.withTable(ctx, op, func(t *placement.Table) error {
		ids := t.Members()
		usages := make([]block.Usage, len(ids))
		answers := s.each(ids, func(i int, _ sys.NodeID, n node) (err error) {
			usages[i], err = n.usage(ctx)
			return err
		})
		total = block.Usage{}
		answered := 0
		for i, a := range answers {
			if a.err == nil {
				answered++
				total.Add(usages[i])
			}
		}
		if answered == 0 {
			return combine(op, "", answers)
		}
		return nil
	})
	return total, err
}
