package client

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/koinon/koinon/internal/cluster/clusterpb"
	"github.com/koinon/koinon/internal/electorate"
	"github.com/koinon/koinon/internal/placement"
	"github.com/koinon/koinon/internal/sys"
)

const opRemove sys.Op = "node.Remove"

// removeLook is the pause between two looks at how far a removal is.
const removeLook = 300 * time.Millisecond

// Remove relieves a node of its vote and its blocks and then takes it out of
// the cluster for ever. It returns when the node is gone; told, which may be
// nil, hears again and again meanwhile what it waits for. When ctx ends first
// the removal goes on without the caller. A node that has left already is fine.
//
// It is refused, and nothing changes, where those who stay could not go on.
func (a *Admin) Remove(ctx context.Context, id sys.NodeID, told func(waits string)) error {
	if err := a.cluster.Refresh(ctx); err != nil {
		return err
	}
	if a.cluster.Removed(id) {
		return nil // an earlier try has done it
	}
	if err := a.mayRemove(ctx, id); err != nil {
		return err
	}
	if err := a.cluster.SetState(ctx, id, clusterpb.State_DRAINING); err != nil {
		return mayGoOn(id, err)
	}
	tick := time.NewTicker(removeLook)
	defer tick.Stop()
	for {
		if err := a.cluster.Refresh(ctx); err != nil {
			return mayGoOn(id, err)
		}
		if a.cluster.Removed(id) {
			return nil
		}
		if told != nil {
			if st, err := readStatus(ctx, a.cluster, a.cluster.Map().GetCluster()); err == nil {
				told(st.waits(id, a.cluster.Table()))
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return sys.E(opRemove, sys.Interrupted, sys.Subject(id.String()), "the removal goes on by itself; `koinon node ls` shows how far it is")
		}
	}
}

// mayGoOn is what keeps a removal from being followed, which may have begun.
func mayGoOn(id sys.NodeID, err error) error {
	if !sys.Is(err, sys.Unavailable) && !sys.Is(err, sys.Interrupted) {
		return err
	}
	return sys.E(opRemove, sys.KindOf(err), sys.Subject(id.String()), fmt.Errorf(
		"%w; the removal may have begun, and then it goes on by itself: `koinon node ls` shows how far it is", err))
}

// waits says what the removal of a node waits for.
func (s *Status) waits(id sys.NodeID, t *placement.Table) string {
	needed := map[sys.NodeID]int{} // by who has to copy
	groups := 0
	for pg := range t.PGs {
		if !slices.Contains(t.PGs[pg], id) && !slices.Contains(t.From[pg], id) {
			continue
		}
		groups++
		for _, o := range t.PGs[pg] {
			needed[o]++
		}
	}
	var copies, silent []string
	voter := false
	for _, n := range s.Nodes {
		voter = voter || n.ID == id && n.Voter
		switch {
		case n.ID == id || needed[n.ID] == 0:
		case n.State != "up":
			silent = append(silent, n.ID.String())
		case n.Healing != "":
			copies = append(copies, fmt.Sprintf("%v (%s)", n.ID, n.Healing))
		}
	}
	var what []string
	if s.Leader == 0 {
		what = append(what, "there is no leader")
	}
	if voter {
		what = append(what, "it still votes")
	}
	if groups > 0 {
		what = append(what, fmt.Sprintf("%d placement groups need it until others have copied them", groups))
	}
	if len(copies) > 0 {
		what = append(what, "still copying: "+strings.Join(copies, ", "))
	}
	if len(silent) > 0 {
		what = append(what, "no answer from "+strings.Join(silent, ", "))
	}
	if len(what) == 0 {
		return "for the leader to take it out"
	}
	return strings.Join(what, "; ")
}

// mayRemove refuses what would stop the cluster.
func (a *Admin) mayRemove(ctx context.Context, id sys.NodeID) error {
	st, err := readStatus(ctx, a.cluster, a.cluster.Map().GetCluster())
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(st.Nodes, func(n NodeStatus) bool { return n.ID == id }) {
		return sys.E(opRemove, sys.NotExist, sys.Subject(id.String()), "the cluster has no such node; `koinon node ls` shows those that it has")
	}
	return st.without(id)
}

// without says why the others could not go on without a node, nil when they
// could.
func (s *Status) without(id sys.NodeID) error {
	var electors []electorate.Node // as the leader sees them then
	var voters, down, learning []string
	stay, signs, last := 0, false, false
	for _, n := range s.Nodes {
		leaves := n.ID == id || n.Member == "draining"
		electors = append(electors, electorate.Node{ID: n.ID, Voter: n.Voter, Learner: !n.Voter, Leader: n.ID == s.Leader,
			Leaving: leaves, Fit: n.State == "up" && n.Member != "joining"})
		if leaves {
			last = last || n.ID == id && n.Signs
			continue
		}
		stay++
		signs = signs || n.Signs
	}
	chosen, _, _ := electorate.Next(electors)
	for _, n := range s.Nodes {
		switch {
		case slices.Contains(chosen, n.ID):
			voters = append(voters, n.ID.String())
			if n.State != "up" {
				down = append(down, n.ID.String())
			}
		case n.State == "up" && n.Member == "joining":
			learning = append(learning, n.ID.String())
		}
	}
	switch {
	case stay == 0:
		return sys.E(opRemove, sys.Invalid, sys.Subject(id.String()), "it is the only node: add another one first (`koinon node token`)")
	case len(voters) > 0 && 2*len(down) >= len(voters):
		wait := ""
		if len(learning) > 0 {
			wait = fmt.Sprintf(", or wait until %s can vote, which copies the state now", learning[0])
		}
		return sys.E(opRemove, sys.Invalid, sys.Subject(id.String()), fmt.Sprintf(
			"without it there would be no majority: of %s, which choose the log then, %s %s down; start %s first, or remove the dead one instead%s",
			strings.Join(voters, ", "), strings.Join(down, ", "), map[bool]string{true: "are", false: "is"}[len(down) > 1], down[0], wait))
	case last && !signs:
		return sys.E(opRemove, sys.Invalid, sys.Subject(id.String()),
			"no other node that answers has the key of the cluster's CA, so that no node could join any more: copy the file that `ca_key` in its node.toml names to another node, mode 0600, set `ca_key` under [tls] in that one's node.toml, and start it again")
	}
	return nil
}
