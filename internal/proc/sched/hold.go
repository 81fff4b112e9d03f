package sched

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/koinon/koinon/internal/sys"
)

// ErrNever means that a gang could not start even if nothing else ran.
var ErrNever = errors.New("can never start on the nodes there are")

// unfitShown is of how many nodes it is told why they will not do.
const unfitShown = 3

// Check says whether a gang makes sense and could start if nothing else ran: nil, or an error that names what there is. Drained
// nodes and refusals do not count: they pass.
func Check(g *Gang, nodes []Node) error {
	if g.Size < 1 || g.Size > SizeMax {
		return fmt.Errorf("a gang of 1 to %d processes wanted, not of %d", SizeMax, g.Size)
	}
	if g.Each.CPU < 0 || g.Each.Memory < 0 || g.Each == (Resources{}) {
		return fmt.Errorf("every process needs some CPU or memory, not %v", g.Each)
	}
	room := int64(0)
	var largest Resources
	var unfit []string
	for _, n := range nodes {
		bare := nodeState{Node: n}
		bare.Draining = false
		if r := bare.refuses(&Gang{Want: g.Want, On: g.On}, 0); r != "" {
			unfit = append(unfit, n.Name+" "+r)
			continue
		}
		room += n.Capacity.slots(g.Each)
		largest.CPU, largest.Memory = max(largest.CPU, n.Capacity.CPU), max(largest.Memory, n.Capacity.Memory)
	}
	switch {
	case room >= int64(g.Size):
		return nil
	case largest == (Resources{}) && len(unfit) > unfitShown:
		return fmt.Errorf("%w: no node has what is wanted: %s; and %d more", ErrNever, strings.Join(unfit[:unfitShown], ", "), len(unfit)-unfitShown)
	case largest == (Resources{}) && len(unfit) > 0:
		return fmt.Errorf("%w: no node has what is wanted: %s", ErrNever, strings.Join(unfit, ", "))
	case room == 0:
		return fmt.Errorf("%w: %v for one process; the largest node has %v", ErrNever, g.Each, largest)
	}
	return fmt.Errorf("%w: room for %d processes of %v in all, %d wanted", ErrNever, room, g.Each, g.Size)
}

func (s *Snapshot) patience() Time {
	if s.Patience <= 0 {
		return defaultPatience
	}
	return s.Patience
}

// wait says that a gang waits, and holds places for it when it has waited long.
func (st *state) wait(s *Snapshot, g *Gang, why string) Wait {
	w := Wait{Gang: g.ID, Why: why}
	if s.Now-g.Submitted < s.patience() {
		return w
	}
	for _, h := range st.hold(g) {
		w.Held = append(w.Held, h.n.ID)
	}
	if len(w.Held) > 0 {
		w.Why += fmt.Sprintf("; places are held on %d nodes until what runs there has ended", len(w.Held))
	}
	return w
}

type heldNode struct {
	n     *nodeState
	free  int64 // processes that fit now
	all   int64 // that would fit if nothing ran
	taken int64 // that are held for
}

// hold keeps places for a gang on nodes that nobody else has places held on: where most is free, until as many would fit
// if the nodes were empty as the gang has processes. It holds all or nothing.
func (st *state) hold(g *Gang) []heldNode {
	var hs []heldNode
	for i := range st.nodes {
		n := &st.nodes[i]
		if n.holder == 0 && n.refuses(g, st.now) == "" {
			if all := n.Capacity.slots(g.Each); all > 0 {
				hs = append(hs, heldNode{n: n, free: min(n.free.slots(g.Each), all), all: all})
			}
		}
	}
	slices.SortStableFunc(hs, func(a, b heldNode) int { return -cmp.Compare(a.free, b.free) })
	missing, k := int64(g.Size), 0
	for ; k < len(hs) && missing > 0; k++ {
		hs[k].taken = min(hs[k].all, missing)
		missing -= hs[k].taken
	}
	if missing > 0 {
		return nil
	}
	hs = hs[:k]
	soonest := st.soonest(g, hs)
	for _, h := range hs {
		h.n.holder, h.n.until = g.ID, soonest
		h.n.held = g.Each.Times(h.taken)
	}
	return hs
}

// soonest is when a gang could start on the nodes held for it, as far as the ends of what runs are known.
func (st *state) soonest(g *Gang, hs []heldNode) Time {
	missing := int64(g.Size)
	free := make(map[*nodeState]Resources, len(hs))
	fit := func(h *heldNode) int64 { return min(free[h.n].slots(g.Each), h.taken) }
	byID := make(map[*nodeState]*heldNode, len(hs))
	for i := range hs {
		h := &hs[i]
		free[h.n], byID[h.n] = h.n.free, h
		missing -= fit(h)
	}
	for _, r := range st.running {
		if missing <= 0 {
			break
		}
		i, found := slices.BinarySearchFunc(st.nodes, r.Node, func(n nodeState, id sys.NodeID) int { return cmp.Compare(n.ID, id) })
		if !found || byID[&st.nodes[i]] == nil {
			continue
		}
		h := byID[&st.nodes[i]]
		missing += fit(h)
		free[h.n] = free[h.n].Plus(r.Uses)
		if missing -= fit(h); missing <= 0 {
			return max(r.Until, st.now)
		}
	}
	if missing <= 0 {
		return st.now
	}
	return never
}
