package replica

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/replica/replicapb"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/paxos"
)

// promiseRetry is the pause between two rounds of questions. Who has answered is
// asked again every promiseNews rounds, for who votes by then.
const (
	promiseRetry = 100 * time.Millisecond
	promiseNews  = 10
)

// regainPromise asks every other voter for its promise, when this replica has
// lost its own. All have to answer: the voters of the newest configurations that
// anybody knows. A ballot of somebody who has left these counts only in slots
// before them, and those are chosen: nobody waits for who is removed meanwhile.
//
// Why the highest answer is enough: a ballot that this replica promised was
// promised by its owner first, who tells so unless it has lost its promise too.
// Where a majority of each configuration has lost nothing, one of them has
// promised every ballot that was ever elected, so at least the highest at which
// this replica can have voted. A ballot of the other one who lost its promise may
// be higher where it was not elected; then it is of a life of its owner that takes
// no promise any more (paxos.MsgPrepare).
func (g *Group) regainPromise() {
	h := g.host
	h.cfg.Logger.Warn("this replica lost its promise: it asks all others for theirs", "group", g.id)
	q := inquiry{g: g, known: *g.configs.Load(), told: map[sys.NodeID]bool{}}
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
		g.d.lost, g.d.stateDirty = false, true
		g.begin()
		h.pass()
	})
}

// inquiry is what a replica that lost its promise has heard.
type inquiry struct {
	g       *Group
	known   paxos.History // the newest one
	told    map[sys.NodeID]bool
	highest paxos.Ballot
}

// ask asks who has not told yet, and reports whether all is known.
func (q *inquiry) ask(round int) (done bool) {
	h := q.g.host
	whom := electorate(q.known)
	if len(q.known) == 0 {
		whom = *h.peers.Load() // somebody has to know who votes
	}
	done = len(q.known) > 0
	if len(whom) == 0 && round >= promiseNews { // the seeds have been asked
		q.g.waitsFor("it knows of nobody to ask, since none of its `seeds` has told who the members are: put the address of a node that runs there")
	}
	lost := []sys.NodeID{h.cfg.Self}
	for _, id := range whom {
		if id == h.cfg.Self || q.told[id] && round%promiseNews > 0 {
			continue
		}
		ballot, history, err := q.g.askPromise(id)
		switch {
		case err == nil:
			q.told[id] = true
		case q.told[id]:
		case errors.Is(err, errPromiseLost):
			if lost = append(lost, id); len(q.known) == 0 {
				q.g.waitsFor(fmt.Sprintf("it waits for somebody who knows who votes, %v has lost it too", id))
			}
		default:
			q.g.waitsFor(fmt.Sprintf("it waits for %v, start that node if it does not run", id))
			done = false
		}
		if q.highest.Less(ballot) {
			q.highest = ballot
		}
		if newer(history, q.known) {
			q.known = history
			done = false // others may have to be asked
		}
	}
	if done && tooMany(lost, q.known) {
		q.g.waitsFor(fmt.Sprintf("%v have lost it, and there is no majority without them: bring back the directory of one of them", lost))
		done = false
	}
	return done
}

// tooMany reports whether the voters other than some are no majority of one of
// the configurations.
func tooMany(some []sys.NodeID, of paxos.History) bool {
	return slices.ContainsFunc(of, func(c paxos.ConfigAt) bool {
		others := slices.DeleteFunc(nodeIDs(c.Voters), func(id sys.NodeID) bool { return slices.Contains(some, id) })
		return 2*len(others) <= len(c.Voters)
	})
}

// waitsFor puts into the status that the replica does not vote before another
// has told its promise. The driver's own status follows when all have.
func (g *Group) waitsFor(what string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.published.Damaged = "this replica has lost what it promised, and does not vote until every other node has told what it promised: " + what
}

// errPromiseLost says that the one asked has lost its promise itself, or does not
// know it yet.
var errPromiseLost = errors.New("the promise is not known there either")

// newer reports whether history a is of a later state than b.
func newer(a, b paxos.History) bool {
	switch {
	case len(a) == 0 || len(b) == 0:
		return len(a) > 0
	case a[0].From != b[0].From:
		return a[0].From > b[0].From
	}
	return len(a) > len(b)
}

// askPromise asks one replica for its promise and who votes.
func (g *Group) askPromise(to sys.NodeID) (b paxos.Ballot, h paxos.History, err error) {
	req := pb.Marshal(&replicapb.Request{Group: uint64(g.id),
		Op: &replicapb.Request_Promise{Promise: &replicapb.PromiseQuery{}}})
	ctx, cancel := context.WithTimeout(g.host.ctx, time.Second)
	defer cancel()
	reply, err := g.host.call(ctx, to, req)
	if err != nil {
		return b, nil, err
	}
	if reply.Refused {
		return b, nil, errPromiseLost
	}
	if len(reply.Members) > 0 {
		if h, err = paxos.DecodeHistory(reply.Members); err != nil {
			g.host.cfg.Logger.Warn("an answer about promises is not understood", "from", to, "err", err)
			return b, nil, err
		}
	}
	return paxos.Ballot{Round: reply.Promised.GetRound(), Node: paxos.NodeID(reply.Promised.GetNode())}, h, nil
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
		told.give(&replicapb.Reply{Promised: &replicapb.Ballot{Round: st.Promised.Round, Node: uint64(st.Promised.Node)},
			Members: st.Configs.Encode()})
	})
	switch g.host.cfg.Sched.Wait(nil, told.done, ctx.Done(), g.host.stop) {
	case env.GotA:
		return told.v, nil
	case env.GotB:
		return nil, sys.E(sys.Op("replica.Promise"), sys.Interrupted, ctx.Err())
	}
	return nil, g.host.stopped("replica.Promise")
}
