package proc

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/proc/procpb"
	"github.com/koinon/koinon/internal/sys"
)

// A node tells the server in its process of an end, which that takes if it leads, and only of the node's own.
func TestTheLeadersOwnNodeTellsDirectly(t *testing.T) {
	w := newWorld(t)
	id := w.submit(gang(1))
	w.waitFor(id, procpb.State_RUNNING)
	var runs *procpb.Reservation
	var on *fakeNode
	w.await("a node runs it", func() bool {
		for _, n := range w.nodes {
			for _, r := range n.runs() {
				runs, on = r, n
			}
		}
		return runs != nil
	})
	report := func(of sys.NodeID) []byte {
		return pb.Marshal(&procpb.Ended{Reports: []*procpb.Report{{Job: id, Rank: runs.Ranks[0], Epoch: runs.Epoch, Node: uint64(of),
			Process: &procpb.Process{StartedNs: 1, EndedNs: 2}}}})
	}
	other := w.nodes[0]
	if other == on {
		other = w.nodes[1]
	}
	leader := w.leader()
	for _, n := range w.nodes {
		if _, ok := n.server.Answer(t.Context(), other.id, MethodEnded, report(on.id)); ok {
			t.Errorf("node %v has taken a report of another node", n.id)
		}
		if _, ok := n.server.Answer(t.Context(), on.id, MethodSubmit, nil); ok {
			t.Errorf("node %v answers what no node asks", n.id)
		}
		if _, ok := n.server.Answer(t.Context(), on.id, MethodEnded, report(on.id)); ok && n != leader && w.leader() == leader {
			t.Errorf("node %v, which does not lead, has taken a report", n.id)
		}
	}
	answer, ok := w.leader().server.Answer(t.Context(), on.id, MethodEnded, report(on.id))
	res := &procpb.Result{}
	if decode(answer, res); !ok || res.Failure != nil {
		t.Errorf("the leader has answered %v, %v", res, ok)
	}
	w.waitFor(id, procpb.State_EXITED)
	on.set(func() { clear(on.running) })
}

// gather asks for all the news of a job that was just submitted, to its end.
func (w *world) gather(id uint64) <-chan *procpb.WaitReply {
	asked := make(chan *procpb.WaitReply, 1)
	go func() {
		r, err := w.c.Wait(w.t.Context(), &procpb.WaitRequest{Job: id, Version: FirstVersion, WaitNs: int64(20 * time.Second), SettleNs: int64(20 * time.Second), Tasks: true})
		if err != nil {
			w.t.Error(err)
		}
		asked <- r
	}()
	return asked
}

// News may be gathered: who asks for that hears of a short process once, with its end and what it wrote; of a long one when that time is over.
func TestNewsAreGathered(t *testing.T) {
	w := newWorld(t)
	id := w.submit(gang(2))
	asked := w.gather(id)
	w.waitFor(id, procpb.State_RUNNING)
	r, err := w.c.Wait(t.Context(), &procpb.WaitRequest{Job: id, Version: FirstVersion, WaitNs: int64(20 * time.Second), SettleNs: 1, Tasks: true})
	if err != nil || r.Job.State != procpb.State_RUNNING || len(r.Tasks) != 1 || len(r.Ended) != 0 {
		t.Errorf("of a long process Wait told %v, %v", r, err)
	}
	w.finish(id)
	if r := <-asked; r == nil || r.Job.State != procpb.State_EXITED || len(r.Tasks) != 1 || len(r.Ended) != 2 ||
		r.Ended[0].Rank == r.Ended[1].Rank || string(r.Ended[0].Stdout) != "hello\n" || r.Ended[0].Epoch != r.Tasks[0].Epoch || r.Ended[0].Node == 0 {
		t.Errorf("of a short process Wait told %v", r)
	}
	// Somebody who comes later is told by the rows, and asks the nodes or reads the files.
	if r, err := w.c.Wait(t.Context(), &procpb.WaitRequest{Job: id, Tasks: true}); err != nil || len(r.Tasks) != 1 || r.Spec == nil {
		t.Errorf("afterwards Wait told %v, %v", r, err)
	}
}

// Of each try that was over before anybody looked the followers hear, also of one that printed too much to be told: its node is asked.
func TestEveryTryIsHeardOf(t *testing.T) {
	w := newWorld(t)
	spec := gang(1)
	spec.Retries = 3
	id := w.submit(spec)
	asked := w.gather(id)
	outputs := map[uint32]int{1: 10, 2: toldMax + 1, 3: InlineMax, 4: toldMax}
	for epoch := uint32(1); epoch <= 4; epoch++ {
		w.await("a try runs", func() bool { return w.endTry(id, epoch, outputs[epoch]) })
	}
	r := <-asked
	if r == nil || r.Job.State != procpb.State_FAILED || len(r.Ended) != 4 {
		t.Fatalf("Wait told %v", r)
	}
	for i, e := range r.Ended {
		want := outputs[uint32(i+1)]
		if big := want > toldMax; e.Epoch != uint32(i+1) || e.Recorded != big || big && len(e.Stdout) != 0 || !big && len(e.Stdout) != want {
			t.Errorf("of try %d Wait told epoch %d, recorded %v, %d bytes", i+1, e.Epoch, e.Recorded, len(e.Stdout))
		}
	}
	// Who comes later hears of the last one, as from the files.
	if r, err := w.c.Wait(t.Context(), &procpb.WaitRequest{Job: id, Tasks: true}); err != nil || len(r.Ended) != 1 || r.Ended[0].Epoch != 4 {
		t.Errorf("afterwards Wait told %v, %v", r, err)
	}
}

// endTry reports that a try has failed, once it runs somewhere.
func (w *world) endTry(job uint64, epoch uint32, printed int) bool {
	for _, n := range w.nodes {
		for _, r := range n.runs() {
			if r.Job != job || r.Epoch != epoch {
				continue
			}
			reply, err := n.peers.CallLeader(w.t.Context(), MethodEnded, nil, pb.Marshal(&procpb.Ended{Reports: []*procpb.Report{{
				Job: job, Rank: r.Ranks[0], Epoch: epoch, Node: uint64(n.id), Stdout: make([]byte, printed),
				Process: &procpb.Process{StartedNs: 1, EndedNs: 2, ExitCode: 1}}}}))
			if err != nil {
				w.t.Fatal(err)
			}
			reply.Release()
			n.set(func() { delete(n.running, fmt.Sprintf("%d.%d-%d", job, r.Index, epoch)) })
			return true
		}
	}
	return false
}

// Who asks more urgently than before is heard at once, and is not taken for one who asks again.
func TestAnotherSignalIsToldAtOnce(t *testing.T) {
	m := &taskModel{}
	now := time.Hour
	if !m.tellNow(sigTerm, now) {
		t.Error("the first signal is not told")
	}
	m.told, m.toldSig = now, sigTerm
	if m.tellNow(sigTerm, now+againEvery-1) || !m.tellNow(sigTerm, now+againEvery) {
		t.Error("the same signal is not told again when it may have been lost, and only then")
	}
	if !m.tellNow(sigKill, now+1) {
		t.Error("SIGKILL after SIGTERM is put off")
	}
}

// What is open after an error does not change what the error is.
func TestMayBeSubmitted(t *testing.T) {
	for _, err := range []error{sys.E(sys.Op("cluster.CallLeader"), sys.Unavailable, "no majority"), sys.E(sys.Unavailable), errors.New("no majority")} {
		got := mayBeSubmitted(err)
		if sys.KindOf(got) != sys.KindOf(err) || !strings.Contains(got.Error(), "; the job may have been submitted") || !strings.HasPrefix(got.Error(), err.Error()) {
			t.Errorf("%v became %v (%v)", err, got, sys.KindOf(got))
		}
	}
}
