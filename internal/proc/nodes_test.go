package proc

import (
	"testing"

	"github.com/koinon/koinon/commit"
	"github.com/koinon/koinon/internal/proc/procpb"
)

// TestForgotten: what a heartbeat does not list is missed only when its start cannot be under way any more, and lost only when the
// node has said so again, to the same leader, after it was missed.
func TestForgotten(t *testing.T) {
	const node, fence, term = 1, 1, 7
	party := PartyOf(node, fence)
	l := &leadership{term: term, coord: commit.NewCoordinator(commit.Config{}, 3, nil, 0), model: newModel()}
	n := &nodeModel{row: &procpb.Node{Id: node, Fence: fence}}
	l.model.addJob(&procpb.Job{Id: 5, Running: 1}, &procpb.Spec{})
	task := &procpb.Task{Job: 5, Epoch: 2, State: procpb.State_RUNNING, Procs: []*procpb.Process{{Node: 9, State: procpb.State_RUNNING}, {Node: node, State: procpb.State_RUNNING}}}
	l.model.setTask(task, 0)
	tx, err := l.coord.Begin(0, []commit.Part{{Party: party}})
	if err != nil {
		t.Fatal(err)
	}
	l.model.jobs[5].tasks[0].tx = tx
	step := func(m commit.Message) {
		t.Helper()
		m.Party, m.Tx, m.Epoch = party, tx, 3
		if err := l.coord.Step(0, m); err != nil {
			t.Fatal(err)
		}
		for _, r := range l.coord.Ready().Agree {
			l.coord.Agreed(0, r, true)
		}
	}
	running := &procpb.Running{Job: 5, Rank: 1, Epoch: 2}
	beat := func(what string, want int, leadership, mark uint64, listed ...*procpb.Running) {
		t.Helper()
		lost := l.forgotten(n, &procpb.Heartbeat{Node: &procpb.Node{Id: node}, Leadership: leadership, Mark: mark, Running: listed})
		if len(lost) != want {
			t.Errorf("%s: %d lost processes expected, found %v", what, want, lost)
		}
	}
	beat("its node votes", 0, term, l.mark)
	beat("its node votes, again", 0, term, l.mark)
	step(commit.Message{Kind: commit.MsgVote, Vote: commit.Yes})
	beat("its node is told to start it", 0, term, l.mark)
	beat("its node is told to start it, again", 0, term, l.mark)
	step(commit.Message{Kind: commit.MsgAck})
	beat("sent before it was started", 0, term, l.mark)
	beat("sent before that was answered", 0, term, l.mark-1)
	beat("sent to another leader", 0, term-1, l.mark)
	beat("it is there", 0, term, l.mark, running)
	beat("a later try is there", 0, term, l.mark, &procpb.Running{Job: 5, Rank: 1, Epoch: 3})
	beat("it is not there", 1, term, l.mark)
	beat("what was not agreed is found again", 1, term, l.mark)
}
