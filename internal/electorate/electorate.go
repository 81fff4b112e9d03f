// Package electorate is pure: it says which nodes of a cluster vote.
//
// Everything a group decides must reach a majority of its voters, so more
// voters survive more losses and cost more. One node votes alone, three survive
// the loss of one, five of two; a fourth or a second voter would only make the
// majority larger, so it is not added. It is not sent away either when it is
// one of the last two: what both have on disk survives the loss of one disk.
// All other nodes are learners: they have everything and can take over a
// voter's place in one step.
package electorate

import (
	"cmp"
	"slices"

	"github.com/koinon/koinon/internal/sys"
)

// Max is the most voters there will be.
const Max = 5

// Node is what the leader knows of a node.
type Node struct {
	ID   sys.NodeID
	Zone string // failure domain; empty: a zone of its own
	// Voter and Learner say what it is in the configuration in force; neither
	// is a node that the group does not know yet.
	Voter, Learner bool
	Leader         bool
	// Leaving says that it is to be no voter: it is being drained.
	Leaving bool
	// Fit says that it answers and has nearly all, so that it may become a
	// voter; of voters that are too many those go first that are not.
	Fit bool
	// Lost says that it has not answered for long, so that another one should
	// vote in its place.
	Lost bool
}

// Next returns the configuration that brings the group a step nearer to what
// it should be, both lists ascending. change is false when nothing is to be
// done now. New voters are fit learners; there is always a voter.
func Next(nodes []Node) (voters, learners []sys.NodeID, change bool) {
	nodes = slices.Clone(nodes)
	slices.SortFunc(nodes, func(a, b Node) int { return cmp.Compare(a.ID, b.ID) })
	chosen := choose(nodes)
	if len(chosen) == 0 { // all are leaving: they stay until another one has learned enough
		for _, n := range nodes {
			if n.Voter {
				chosen = append(chosen, n.ID)
			}
		}
	}
	if len(chosen) == 0 {
		return nil, nil, false
	}
	for _, n := range nodes {
		votes := slices.Contains(chosen, n.ID)
		if votes {
			voters = append(voters, n.ID)
		} else {
			learners = append(learners, n.ID)
		}
		change = change || votes != n.Voter || !votes && !n.Learner
	}
	return voters, learners, change
}

// choose returns who should vote, of those who can by now.
func choose(nodes []Node) []sys.NodeID {
	var keep, spare []Node
	able := 0
	for _, n := range nodes {
		if n.Leaving {
			continue
		}
		able++
		switch {
		case n.Voter:
			keep = append(keep, n)
		case n.Learner && n.Fit && !n.Lost:
			spare = append(spare, n)
		}
	}
	// Those who go first stand last.
	slices.SortStableFunc(keep, func(a, b Node) int { return cmp.Compare(dispensable(a), dispensable(b)) })
	for i, n := range keep {
		if n.Lost && len(spare) > 0 {
			keep[i], spare = take(keep, i, spare)
		}
	}
	target := size(able)
	for len(keep) > max(target, 2) || len(keep) > target && target > 2 {
		keep = keep[:len(keep)-1]
	}
	for len(keep)+2 <= target && len(spare) >= 2 || len(keep)%2 == 0 && len(keep) < target && len(spare) > 0 {
		var n Node
		n, spare = take(keep, -1, spare)
		keep = append(keep, n)
	}
	ids := make([]sys.NodeID, len(keep))
	for i, n := range keep {
		ids[i] = n.ID
	}
	return ids
}

// size is how many of n nodes should vote.
func size(n int) int {
	n = min(n, Max)
	return n - (n+1)%2*min(n, 1)
}

func dispensable(n Node) int {
	switch {
	case n.Leader:
		return 0
	case n.Fit:
		return 1
	case !n.Lost:
		return 2
	}
	return 3
}

// take picks the spare that shares its zone with the fewest of keep, of which
// the one at place except does not count.
func take(keep []Node, except int, spare []Node) (Node, []Node) {
	best, fewest := 0, len(keep)+1
	for i, s := range spare {
		same := 0
		for k, n := range keep {
			if k != except && s.Zone != "" && n.Zone == s.Zone {
				same++
			}
		}
		if same < fewest {
			best, fewest = i, same
		}
	}
	n := spare[best]
	return n, slices.Delete(slices.Clone(spare), best, best+1)
}
