package replica

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/replica/replicapb"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/paxos"
)

// promiseRetry is the pause between two rounds of questions. Voters that have
// answered are asked again every promiseNews rounds, for who votes by then.
const (
	promiseRetry = 100 * time.Millisecond
	promiseNews  = 10
)

// regainPromise asks every other voter for its promise, when this replica has
// lost its own. All have to answer: the voters of the newest configurations that
// anybody knows, or has accepted. A ballot of somebody who has left these counts
// only in slots before them, and those are chosen: nobody waits for who is removed
// meanwhile.
//
// Why the highest answer is enough: a ballot that this replica promised was
// promised by its owner first, who tells so unless it has lost its promise too.
// Where somebody of every majority of each configuration has lost nothing, one of
// them has promised every ballot that was ever elected, so at least the highest at
// which this replica can have voted. A ballot of the other one who lost its promise may
// be higher where it was not elected; then it is of a life of its owner that takes
// no promise any more (paxos.MsgPrepare).
//
// Why no configuration is overlooked: one of those who chose it has lost nothing,
// and tells of it, as a voter of the one before.
func (g *Group) regainPromise() {
	h := g.host
	h.cfg.Logger.Warn("this replica lost its promise: it asks all others for theirs", "group", g.id)
	q := inquiry{g: g, told: map[sys.NodeID]told{h.cfg.Self: {history: *g.configs.Load()}}}
	retry := h.cfg.Sched.NewTimer(promiseRetry)
	defer retry.Stop()
	for round := 0; !q.ask(round); round++ {
		retry.Reset(promiseRetry)
		if h.cfg.Sched.Wait(retry, h.stop, nil, nil) != env.Fired {
			return
		}
	}
	g.call(func(paxos.Time) {
		if g.d.recovered.Promised.Less(q.highest) {
			g.d.recovered.Promised = q.highest
		}
		g.d.promised = g.d.recovered.Promised
		g.d.lost, g.d.old, g.d.stateDirty = false, false, true
		g.begin()
		h.pass()
	})
}

// told is what a replica answers.
type told struct {
	promised paxos.Ballot
	history  paxos.History // chosen or accepted there; true also where something else was lost
	whole    bool          // nothing was lost
}

// inquiry is what a replica that lost its promise has heard.
type inquiry struct {
	g       *Group
	told    map[sys.NodeID]told
	highest paxos.Ballot
}

// ask asks who has not told yet, and reports whether all is known.
func (q *inquiry) ask(round int) (done bool) {
	for _, id := range q.whom(round) {
		t, err := q.g.askPromise(id)
		if err != nil || q.told[id].whole && !t.whole {
			continue
		}
		q.told[id] = t
		if q.highest.Less(t.promised) {
			q.highest = t.promised
		}
	}
	what := q.missing()
	if what == "" {
		return true
	}
	if len(*q.g.host.peers.Load()) > 0 || round >= promiseNews { // by then the seeds have been asked
		q.g.waitsFor(what)
	}
	return false
}

// known are the configurations that govern what may not be chosen yet, and those
// that may come after them.
func (q *inquiry) known() (all paxos.History) {
	from := paxos.Slot(0)
	for _, t := range q.told {
		if len(t.history) > 0 {
			from = max(from, t.history[0].From)
		}
	}
	for _, t := range q.told {
		for _, c := range t.history {
			if c.From >= from {
				all = append(all, c)
			}
		}
	}
	return all
}

// whom returns who is to be asked now: the voters, and in turn somebody else, who
// may know of newer ones; everybody where nobody knows who votes.
func (q *inquiry) whom(round int) (ids []sys.NodeID) {
	peers, voters := *q.g.host.peers.Load(), electorate(q.known())
	if len(voters) == 0 {
		return peers
	}
	for _, id := range voters {
		if id != q.g.host.cfg.Self && (!q.told[id].whole || round%promiseNews == 0) {
			ids = append(ids, id)
		}
	}
	if len(peers) > 0 {
		if id := peers[round%len(peers)]; !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	return ids
}

// missing says what the replica still has to hear, nothing when all is known.
func (q *inquiry) missing() string {
	h := q.g.host
	known, lost := q.known(), []sys.NodeID{h.cfg.Self}
	whom := electorate(known)
	if len(known) == 0 {
		if whom = *h.peers.Load(); len(whom) == 0 {
			return "it knows of nobody to ask, since none of its `seeds` has told who the members are: put the address of a node that runs there"
		}
	}
	for _, id := range whom {
		switch t, ok := q.told[id]; {
		case id == h.cfg.Self:
		case !ok:
			return fmt.Sprintf("it waits for %v, start that node if it does not run", id)
		case !t.whole:
			lost = append(lost, id)
		}
	}
	switch {
	case len(known) == 0:
		return fmt.Sprintf("it waits for somebody who knows who votes, %v have lost it too or are new", whom)
	case tooMany(lost, known):
		what := fmt.Sprintf("%v have lost it, and there is no majority without them: bring back the directory of one of them", lost)
		if q.g.d.old {
			what += ", or, where old copies are all there is, stop them and remove on each the file that knows more, here " + h.cfg.Mark
		}
		return what
	}
	return ""
}

// tooMany reports whether the voters other than some have no member of each
// majority of one of the configurations: fewer than half of its voters.
func tooMany(some []sys.NodeID, of paxos.History) bool {
	return slices.ContainsFunc(of, func(c paxos.ConfigAt) bool {
		others := slices.DeleteFunc(nodeIDs(c.Voters), func(id sys.NodeID) bool { return slices.Contains(some, id) })
		return 2*len(others) < len(c.Voters)
	})
}

// waitsFor puts into the status that the replica does not vote before another
// has told its promise. The driver's own status follows when all have.
func (g *Group) waitsFor(what string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.published.Damaged = "this replica has lost what it promised, and does not vote until every other node has told what it promised: " + what
}

// askPromise asks one replica for its promise and who votes.
func (g *Group) askPromise(to sys.NodeID) (t told, err error) {
	req := pb.Marshal(&replicapb.Request{Group: uint64(g.id),
		Op: &replicapb.Request_Promise{Promise: &replicapb.PromiseQuery{}}})
	ctx, cancel := context.WithTimeout(g.host.ctx, time.Second)
	defer cancel()
	reply, err := g.host.call(ctx, to, req)
	if err != nil {
		return t, err
	}
	if len(reply.Members) > 0 {
		if t.history, err = paxos.DecodeHistory(reply.Members); err != nil {
			g.host.cfg.Logger.Warn("an answer about promises is not understood", "from", to, "err", err)
			return t, err
		}
	}
	t.promised = paxos.Ballot{Round: reply.Promised.GetRound(), Node: paxos.NodeID(reply.Promised.GetNode())}
	t.whole = !reply.Refused
	return t, nil
}

// tellPromise answers a replica that lost its promise.
func (g *Group) tellPromise(ctx context.Context) (*replicapb.Reply, error) {
	told := newAnswer[*replicapb.Reply]()
	g.call(func(paxos.Time) {
		if g.d.node == nil {
			told.give(&replicapb.Reply{Refused: true, Reason: "the promise is not known here either"})
			return
		}
		st := g.d.node.Status()
		history := st.Configs
		if len(history) > 0 {
			history = append(history, g.d.node.ConfigsAccepted()...)
		}
		reply := &replicapb.Reply{Promised: &replicapb.Ballot{Round: st.Promised.Round, Node: uint64(st.Promised.Node)},
			Members: history.Encode(), Refused: st.Damaged}
		if st.Damaged {
			reply.Reason = "records are missing here too"
		}
		told.give(reply)
	})
	switch g.host.cfg.Sched.Wait(nil, told.done, ctx.Done(), g.host.stop) {
	case env.GotA:
		return told.v, nil
	case env.GotB:
		return nil, sys.E(sys.Op("replica.Promise"), sys.Interrupted, ctx.Err())
	}
	return nil, g.host.stopped("replica.Promise")
}
