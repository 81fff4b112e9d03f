package proc

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/koinon/koinon/commit"
	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/proc/procpb"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
)

// rows is a store in memory.
type rows map[string][]byte

func (r rows) Get(k []byte) ([]byte, error) { return r[string(k)], nil }
func (r rows) Set(k, v []byte) {
	if v == nil {
		v = []byte{}
	}
	r[string(k)] = v
}
func (r rows) Delete(k []byte) { delete(r, string(k)) }
func (r rows) Scan(lo, hi []byte, fn func(k, v []byte) bool) error {
	for _, k := range slices.Sorted(maps.Keys(r)) {
		if k >= string(lo) && (hi == nil || k < string(hi)) && !fn([]byte(k), r[k]) {
			break
		}
	}
	return nil
}

// table is a machine on rows, with a tree in memory.
type table struct {
	t    require
	m    *Machine
	rows rows
	tree *meta.Memory
	now  int64
	seq  uint64
	ends []end // that were told
}

// require is what testing.T and rapid.T have.
type require interface {
	Fatalf(format string, args ...any)
	Helper()
}

func newTable(t require) *table {
	x := &table{t: t, m: NewMachine(false), rows: rows{}, tree: meta.NewMemory(), now: 1e18}
	x.m.hub.subscribe(true)
	x.do(&procpb.Command{Op: &procpb.Command_Agree{Agree: &procpb.Agree{Kind: uint32(commit.RecordOpen)}}})
	for id := uint64(1); id <= 3; id++ {
		x.do(&procpb.Command{Op: &procpb.Command_SetNode{SetNode: &procpb.SetNode{Node: &procpb.Node{Id: id, Capacity: &procpb.Resources{CpuMilli: 4000}}}}})
	}
	return x
}

func (x *table) do(cmd *procpb.Command) *procpb.Result {
	x.now += 1e6
	res, _ := x.m.apply(x.rows, treeNow{context.Background(), x.tree}, rsm.Stamp{TimeNs: x.now}, pb.Marshal(cmd))
	return res
}

func (x *table) must(cmd *procpb.Command) *procpb.Result {
	x.t.Helper()
	res := x.do(cmd)
	if res.Failure != nil {
		x.t.Fatalf("%v: %v", cmd, failed("test", res.Failure))
	}
	return res
}

func (x *table) job(id uint64) *procpb.Job { return (&command{tx: x.rows}).job(id) }
func (x *table) task(id uint64, i uint32) *procpb.Task {
	return (&command{tx: x.rows}).task(id, i)
}

func specOf(edit ...func(*procpb.Spec)) *procpb.Spec {
	s := &procpb.Spec{Argv: []string{"true"}, Size: 1, Each: &procpb.Resources{CpuMilli: 1000}, User: &procpb.User{Uid: 1000, Gid: 1000, Name: "ana"}}
	for _, e := range edit {
		e(s)
	}
	return s
}

func (x *table) submit(s *procpb.Spec) uint64 {
	x.t.Helper()
	x.seq++
	return x.must(submission(x.seq, s)).Job
}

func submission(n uint64, s *procpb.Spec) *procpb.Command {
	return &procpb.Command{Op: &procpb.Command_Submit{Submit: &procpb.Submit{Request: binary.BigEndian.AppendUint64(make([]byte, 8), n), Spec: s}}}
}

// start commits a try of a task on nodes.
func (x *table) start(job uint64, index uint32, nodes ...uint64) *procpb.Result {
	x.seq++
	t := x.task(job, index)
	out, err := files{treeNow{context.Background(), x.tree}}.walk(rootCred, OutPath(Name{job, -1, -1}, t.Epoch+1))
	if err != nil && !sys.Is(err, sys.NotExist) {
		x.t.Fatalf("%v", err)
	}
	return x.do(&procpb.Command{Op: &procpb.Command_Agree{Agree: &procpb.Agree{Kind: uint32(commit.RecordCommit), Epoch: 1, Seq: x.seq, Parties: []uint64{1},
		Job: job, Index: index, Try: t.Epoch + 1, Nodes: nodes, Why: "there is room", OutIno: out}}})
}

// submitAndStart makes and starts a job by one record, whose ID leaves some out.
func (x *table) submitAndStart(s *procpb.Spec, gap uint64) uint64 {
	x.t.Helper()
	x.seq++
	submit := submission(x.seq, s).GetSubmit()
	submit.Job = must(lastJob(x.rows)) + 1 + gap
	x.must(&procpb.Command{Op: &procpb.Command_Agree{Agree: &procpb.Agree{Kind: uint32(commit.RecordCommit), Epoch: 1, Seq: x.seq, Parties: []uint64{1},
		Job: submit.Job, Try: 1, Nodes: slices.Repeat([]uint64{1}, int(s.Size)), Submit: submit}}})
	return submit.Job
}

func (x *table) end(job uint64, index, rank uint32, p *procpb.Process) {
	x.t.Helper()
	t := x.task(job, index)
	p.StartedNs, p.EndedNs = max(p.StartedNs, 1), x.now
	x.must(&procpb.Command{Op: &procpb.Command_Ended{Ended: &procpb.Ended{Reports: []*procpb.Report{{
		Job: job, Index: index, Rank: rank, Epoch: t.Epoch, Node: t.Procs[rank].Node, Process: p, Stdout: []byte("out\n"), Stderr: []byte("err\n")}}}}})
	x.ends = append(x.ends, end{job: job, version: x.job(job).Version, index: index, rank: rank, epoch: t.Epoch})
}

// end is that of a process, as it was told, with its job's version then.
type end struct {
	job, version       uint64
	index, rank, epoch uint32
}

func (x *table) file(p string) (string, *metapb.Attr) {
	x.t.Helper()
	f := files{treeNow{context.Background(), x.tree}}
	ino, err := f.walk(rootCred, p)
	if sys.Is(err, sys.NotExist) {
		return "", nil
	}
	a, err := x.tree.Query(context.Background(), &metapb.Query{Cred: rootCred, Op: &metapb.Query_Open{Open: &metapb.Open{Ino: ino}}})
	if err != nil {
		x.t.Fatalf("%s: %v", p, err)
	}
	if len(a.Chunks) == 0 {
		return "", a.Attr
	}
	return string(a.Chunks[0].Chunk.Inline), a.Attr
}

func TestASubmissionTakesEffectOnce(t *testing.T) {
	x := newTable(t)
	first := x.must(submission(7, specOf())).Job
	if again := x.must(submission(7, specOf())).Job; again != first {
		t.Fatalf("the same request made jobs %d and %d", first, again)
	}
	if other := x.must(submission(8, specOf())).Job; other == first {
		t.Fatal("another request made no job of its own")
	}
}

func TestWhatMakesNoSenseIsRefused(t *testing.T) {
	for name, s := range map[string]*procpb.Spec{
		"no command":            specOf(func(s *procpb.Spec) { s.Argv = nil }),
		"no process":            specOf(func(s *procpb.Spec) { s.Size = 0 }),
		"a huge gang":           specOf(func(s *procpb.Spec) { s.Size = SizeMax + 1 }),
		"needs nothing":         specOf(func(s *procpb.Spec) { s.Each = nil }),
		"needs less than none":  specOf(func(s *procpb.Spec) { s.Each.Memory = -1 }),
		"no user":               specOf(func(s *procpb.Spec) { s.User = nil }),
		"stdin for a gang":      specOf(func(s *procpb.Spec) { s.Size, s.Stdin = 2, true }),
		"an empty array":        specOf(func(s *procpb.Spec) { s.Array, s.First = true, 5 }),
		"a huge array":          specOf(func(s *procpb.Spec) { s.Array, s.Last = true, ArrayMax }),
		"items without indices": specOf(func(s *procpb.Spec) { s.Items = []string{"a"} }),
		"a relative directory":  specOf(func(s *procpb.Spec) { s.Dir = "home" }),
		"a bad variable":        specOf(func(s *procpb.Spec) { s.Env = []string{"=x"} }),
		"outputs at the root":   specOf(func(s *procpb.Spec) { s.Out = "/" }),
		"outputs among ours":    specOf(func(s *procpb.Spec) { s.Out = "/.koinon/proc/1" }),
		"one output for many":   specOf(func(s *procpb.Spec) { s.Array, s.Last, s.Out = true, 3, "/out" }),
		"waits for nobody":      specOf(func(s *procpb.Spec) { s.After = []*procpb.After{{Job: 99}} }),
	} {
		x := newTable(t)
		before := len(x.rows)
		if res := x.do(submission(1, s)); res.Failure == nil {
			t.Errorf("%s: it was taken", name)
		}
		if len(x.rows) != before {
			t.Errorf("%s: a refusal has written rows", name)
		}
	}
}

func TestTheLifeOfAGang(t *testing.T) {
	x := newTable(t)
	id := x.submit(specOf(func(s *procpb.Spec) { s.Size = 3 }))
	if res := x.start(id, 0, 1, 2, 3); !res.Took {
		t.Fatal("the commit took no effect")
	}
	if j := x.job(id); j.State != procpb.State_RUNNING || j.Running != 1 {
		t.Fatalf("expected a running job, found %v", j)
	}
	x.end(id, 0, 0, &procpb.Process{})
	x.end(id, 0, 1, &procpb.Process{ExitCode: 3})
	if x.task(id, 0).State != procpb.State_RUNNING {
		t.Fatal("the task ended before its last process")
	}
	x.end(id, 0, 2, &procpb.Process{Signal: 11})
	task := x.task(id, 0)
	if task.Placed != "there is room" {
		t.Fatalf("expected the reason of the place to be kept, found %q", task.Placed)
	}
	if task.State != procpb.State_FAILED || task.ExitCode != 3 {
		t.Fatalf("expected a failure with the code of the first that failed, found %v", task)
	}
	if got := task.Procs[2]; got.ExitCode != 139 || got.State != procpb.State_FAILED {
		t.Fatalf("expected 128+11 of a process that died by SIGSEGV, found %v", got)
	}
	if j := x.job(id); j.State != procpb.State_FAILED || j.EndedNs == 0 || j.ExitCode != 3 {
		t.Fatalf("expected a failed job, found %v", j)
	}
	out, attr := x.file(FilesDir(Name{id, -1, 1}) + "/stdout")
	if out != "out\n" || attr.GetUid() != 1000 {
		t.Fatalf("expected the output as the user's file, found %q of %d", out, attr.GetUid())
	}
	raw, _ := x.file(FilesDir(Name{id, -1, 2}) + "/status")
	var st Status
	if err := json.Unmarshal([]byte(raw), &st); err != nil || st.State != "failed" || st.ExitCode == nil || *st.ExitCode != 139 {
		t.Fatalf("expected the status in the tree, found %q (%v)", raw, err)
	}
}

func TestAReportThatComesTwiceOrLateChangesNothing(t *testing.T) {
	x := newTable(t)
	id := x.submit(specOf(func(s *procpb.Spec) { s.Retries = 1 }))
	x.start(id, 0, 1)
	old := &procpb.Report{Job: id, Rank: 0, Epoch: 1, Node: 1, Process: &procpb.Process{ExitCode: 1, StartedNs: 1, EndedNs: 2}}
	ended := &procpb.Command{Op: &procpb.Command_Ended{Ended: &procpb.Ended{Reports: []*procpb.Report{old}}}}
	x.must(ended)
	if got := x.task(id, 0); got.State != procpb.State_QUEUED || !strings.Contains(got.Why, "try 1 of 2") {
		t.Fatalf("expected another try, found %v", got)
	}
	x.start(id, 0, 2)
	before := maps.Clone(x.rows)
	x.must(ended)
	if !maps.EqualFunc(before, x.rows, bytes.Equal) {
		t.Fatal("a report of an earlier try has changed the table")
	}
	x.end(id, 0, 0, &procpb.Process{})
	if got := x.job(id); got.State != procpb.State_EXITED || got.ExitCode != 0 {
		t.Fatalf("expected success at the second try, found %v", got)
	}
}

func TestOneCommitStartsATaskOnce(t *testing.T) {
	x := newTable(t)
	id := x.submit(specOf())
	agree := &procpb.Command{Op: &procpb.Command_Agree{Agree: &procpb.Agree{Kind: uint32(commit.RecordCommit), Epoch: 1, Seq: 1, Parties: []uint64{1}, Job: id, Try: 1, Nodes: []uint64{1}}}}
	x.must(agree)
	x.end(id, 0, 0, &procpb.Process{ExitCode: 1})
	if res := x.must(agree); !res.Took || x.task(id, 0).State != procpb.State_FAILED {
		t.Fatalf("a commit that was proposed twice: %v, %v", res, x.task(id, 0))
	}
	x.must(&procpb.Command{Op: &procpb.Command_Agree{Agree: &procpb.Agree{Kind: uint32(commit.RecordOpen)}}})
	other := x.submit(specOf())
	late := &procpb.Command{Op: &procpb.Command_Agree{Agree: &procpb.Agree{Kind: uint32(commit.RecordCommit), Epoch: 1, Seq: 2, Parties: []uint64{1}, Job: other, Try: 1, Nodes: []uint64{1}}}}
	if res := x.must(late); res.Took || x.task(other, 0).State != procpb.State_QUEUED {
		t.Fatalf("a deposed coordinator has started a task: %v", res)
	}
}

// TestOneRecordMakesAndStartsAJob, or does neither.
func TestOneRecordMakesAndStartsAJob(t *testing.T) {
	x := newTable(t)
	record := func(epoch, seq, request, job uint64, edit ...func(*procpb.Spec)) *procpb.Command {
		s := submission(request, specOf(edit...)).GetSubmit()
		s.Job = job
		return &procpb.Command{Op: &procpb.Command_Agree{Agree: &procpb.Agree{Kind: uint32(commit.RecordCommit), Epoch: epoch, Seq: seq, Parties: []uint64{1},
			Job: job, Try: 1, Nodes: []uint64{1}, Submit: s}}}
	}
	first := record(1, 1, 7, 5)
	for range 2 { // it may be proposed twice
		if res := x.must(first); !res.Took || x.task(5, 0).State != procpb.State_RUNNING || x.job(5).Running != 1 || x.job(5).StartedNs != x.job(5).SubmittedNs {
			t.Fatalf("job 5 expected to run, found %v, %v, %v", res, x.job(5), x.task(5, 0))
		}
	}
	x.end(5, 0, 0, &procpb.Process{ExitCode: 1})
	if again := x.must(submission(7, specOf())).Job; again != 5 {
		t.Errorf("the same request made job %d", again)
	}
	if next := x.submit(specOf()); next != 6 {
		t.Errorf("job 6 expected after job 5, found %d", next)
	}
	before := maps.Clone(x.rows)
	for name, cmd := range map[string]*procpb.Command{
		"the same once more, when it has ended": first,
		"another one for the same request":      record(1, 2, 7, 8),
		"one whose ID is taken":                 record(1, 3, 9, 5),
		"one that cannot be":                    record(1, 4, 10, 9, func(s *procpb.Spec) { s.Argv = nil }),
		"one of a coordinator of before":        record(0, 5, 11, 9),
	} {
		if res := x.must(cmd); res.Took != (cmd == first) || !maps.EqualFunc(before, x.rows, bytes.Equal) {
			t.Errorf("%s: it has changed something, or has not: %v", name, res)
		}
	}
}

// A job's exit code is that of the lowest index that failed, in whatever order
// its tasks end.
func TestExitCodeOfAnArray(t *testing.T) {
	for _, order := range [][]uint32{{2, 3, 4}, {4, 3, 2}, {3, 4, 2}} {
		x := newTable(t)
		id := x.submit(specOf(func(s *procpb.Spec) { s.Array, s.First, s.Last = true, 2, 4 }))
		for _, i := range order {
			x.start(id, i, 1)
			x.end(id, i, 0, &procpb.Process{ExitCode: map[uint32]uint32{2: 0, 3: 7, 4: 9}[i]})
		}
		if j := x.job(id); j.State != procpb.State_FAILED || j.ExitCode != 7 {
			t.Errorf("in the order %v the job is %v with %d, want 7", order, j.State, j.ExitCode)
		}
	}
}

// TestLostIsTrouble: whatever signal ended what is lost, the code says that it
// was not the program's doing.
func TestLostIsTrouble(t *testing.T) {
	x := newTable(t)
	one := x.submit(specOf())
	x.start(one, 0, 1)
	x.end(one, 0, 0, &procpb.Process{State: procpb.State_LOST, Signal: 9, Why: "the node lost its lease"})
	gang := x.submit(specOf(func(s *procpb.Spec) { s.Size = 2 }))
	x.start(gang, 0, 1, 2)
	x.end(gang, 0, 1, &procpb.Process{Signal: 15})
	x.end(gang, 0, 0, &procpb.Process{State: procpb.State_LOST, Signal: 9})
	for _, id := range []uint64{one, gang} {
		if j := x.job(id); j.State != procpb.State_LOST || j.ExitCode != ExitTrouble || x.task(id, 0).Procs[0].Signal != 9 {
			t.Errorf("found %v with code %d, want a lost job with %d", j.State, j.ExitCode, ExitTrouble)
		}
	}
}

// TestAnotherNodeStartsIt: what a node could not start goes back into the queue,
// and counts as no try; a gang of which some have run does not.
func TestAnotherNodeStartsIt(t *testing.T) {
	x := newTable(t)
	unstarted := func() *procpb.Process {
		return &procpb.Process{State: procpb.State_LOST, Unstarted: true, Why: "the mount died"}
	}
	id := x.submit(specOf(func(s *procpb.Spec) { s.Retries = 1 }))
	for try := uint32(1); try <= 2; try++ {
		x.start(id, 0, 1)
		x.end(id, 0, 0, unstarted())
		if got := x.task(id, 0); got.State != procpb.State_QUEUED || got.Unstarted != try || got.Lost != 0 || !strings.Contains(got.Why, "the mount died") {
			t.Fatalf("expected it to wait, found %v", got)
		}
	}
	x.start(id, 0, 2)
	x.end(id, 0, 0, &procpb.Process{ExitCode: 3})
	if got := x.task(id, 0); got.State != procpb.State_QUEUED || !strings.Contains(got.Why, "try 1 of 2") {
		t.Fatalf("expected the second try that was asked for, found %v", got)
	}
	x.start(id, 0, 2)
	x.end(id, 0, 0, &procpb.Process{ExitCode: 4})
	if got := x.task(id, 0); got.State != procpb.State_FAILED || got.ExitCode != 4 || got.Epoch != 4 {
		t.Fatalf("expected a failure after two tries, found %v", got)
	}
	gang := x.submit(specOf(func(s *procpb.Spec) { s.Size = 2 }))
	x.start(gang, 0, 1, 2)
	x.end(gang, 0, 0, unstarted())
	x.end(gang, 0, 1, &procpb.Process{Signal: 15})
	if got := x.task(gang, 0); got.State != procpb.State_LOST || got.ExitCode != ExitTrouble {
		t.Fatalf("expected a gang that is lost, found %v", got)
	}
	killed := x.submit(specOf())
	x.start(killed, 0, 1)
	x.must(&procpb.Command{Op: &procpb.Command_Kill{Kill: &procpb.Kill{Job: killed, Signal: 15, By: "me"}}})
	x.end(killed, 0, 0, unstarted())
	if got := x.task(killed, 0); !Over(got.State) {
		t.Fatalf("what was to end is %v", got)
	}
}

func TestALostNodeEndsWhatItRan(t *testing.T) {
	x := newTable(t)
	gang := x.submit(specOf(func(s *procpb.Spec) { s.Size = 2 }))
	again := x.submit(specOf(func(s *procpb.Spec) { s.Retries = 1 }))
	x.start(gang, 0, 1, 2)
	x.start(again, 0, 1)
	lose := &procpb.Command{Op: &procpb.Command_LoseNode{LoseNode: &procpb.LoseNode{Node: 1, Fence: 1, Why: "gone"}}}
	x.must(lose)
	if got := x.task(gang, 0); got.State != procpb.State_RUNNING || !broken(got) {
		t.Fatalf("expected half a gang that is to be ended, found %v", got)
	}
	x.end(gang, 0, 1, &procpb.Process{Signal: 15})
	if got := x.job(gang); got.State != procpb.State_LOST {
		t.Fatalf("expected a lost job, found %v", got)
	}
	if got := x.task(again, 0); got.State != procpb.State_QUEUED || got.Lost != 1 {
		t.Fatalf("expected another try, found %v", got)
	}
	before := maps.Clone(x.rows)
	x.must(lose)
	if !maps.EqualFunc(before, x.rows, bytes.Equal) {
		t.Fatal("the same loss counted twice")
	}
	node := &procpb.Node{}
	decode(x.rows[string(key(rowNode, 1))], node)
	if node.Fence != 2 || !node.Lost {
		t.Fatalf("expected a fenced node, found %v", node)
	}
	x.must(&procpb.Command{Op: &procpb.Command_SetNode{SetNode: &procpb.SetNode{Node: &procpb.Node{Id: 1, Fence: 1}}}})
	decode(x.rows[string(key(rowNode, 1))], node)
	if !node.Lost {
		t.Fatal("a node that does not know its fence counts as back")
	}
	x.must(&procpb.Command{Op: &procpb.Command_SetNode{SetNode: &procpb.SetNode{Node: &procpb.Node{Id: 1, Fence: 2}}}})
	node.Reset()
	decode(x.rows[string(key(rowNode, 1))], node)
	if node.Lost || node.Fence != 2 {
		t.Fatalf("expected the node back, found %v", node)
	}
}

func TestAJobWaitsForOthers(t *testing.T) {
	after := func(id uint64, any bool) func(*procpb.Spec) {
		return func(s *procpb.Spec) { s.After = []*procpb.After{{Job: id, Any: any}} }
	}
	for _, c := range []struct {
		name       string
		code       uint32
		any        bool
		then, last procpb.State // of who waits, and of who waits for that one's success
	}{
		{"success", 0, false, procpb.State_QUEUED, procpb.State_WAITING},
		{"failure, success wanted", 1, false, procpb.State_CANCELLED, procpb.State_CANCELLED},
		{"failure, any end wanted", 1, true, procpb.State_QUEUED, procpb.State_WAITING},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := newTable(t)
			a := x.submit(specOf())
			b := x.submit(specOf(after(a, c.any)))
			d := x.submit(specOf(after(b, false)))
			if got := x.job(b).State; got != procpb.State_WAITING {
				t.Fatalf("expected it to wait, found %v", got)
			}
			x.start(a, 0, 1)
			x.end(a, 0, 0, &procpb.Process{ExitCode: c.code})
			if got := x.job(b).State; got != c.then {
				t.Errorf("expected %v, found %v", c.then, got)
			}
			if got := x.job(d).State; got != c.last {
				t.Errorf("expected %v of the third, found %v", c.last, got)
			}
			late := x.submit(specOf(after(a, c.any)))
			if want, got := c.then, x.job(late).State; got != want {
				t.Errorf("expected %v of one that comes later, found %v", want, got)
			}
		})
	}
}

func TestKill(t *testing.T) {
	x := newTable(t)
	id := x.submit(specOf(func(s *procpb.Spec) { s.Array, s.Last, s.Retries = true, 2, 5 }))
	x.start(id, 0, 1)
	res := x.must(&procpb.Command{Op: &procpb.Command_Kill{Kill: &procpb.Kill{Job: id, Signal: sigTerm, By: "ana"}}})
	if res.Count != 3 {
		t.Fatalf("expected 3 tasks concerned, found %d", res.Count)
	}
	if got := x.task(id, 1); got.State != procpb.State_KILLED || got.ExitCode != 143 {
		t.Fatalf("expected what waits to be out of the queue, found %v", got)
	}
	if got := x.task(id, 0); got.State != procpb.State_RUNNING || got.Signal != sigTerm {
		t.Fatalf("expected what runs to be ended, found %v", got)
	}
	x.end(id, 0, 0, &procpb.Process{Signal: 15})
	if got := x.job(id); got.State != procpb.State_KILLED || got.Killed != 3 {
		t.Fatalf("expected a killed job without another try, found %v", got)
	}
	if res := x.do(&procpb.Command{Op: &procpb.Command_Kill{Kill: &procpb.Kill{Job: 99, Signal: 9}}}); res.Failure == nil {
		t.Fatal("an unknown job was killed")
	}
}

func TestOutputsAndStatusAppearTogether(t *testing.T) {
	ana := &procpb.User{Uid: 1000, Gid: 1000}
	for _, c := range []struct {
		name  string
		code  uint32
		while func(x *table, f files, home, private uint64) error // it runs
		want  procpb.State
	}{
		{"success", 0, nil, procpb.State_EXITED},
		{"failure", 1, nil, procpb.State_FAILED},
		{"the name is taken", 0, func(_ *table, f files, home, _ uint64) error {
			taken, err := f.directory(home, "result", nil)
			return errors.Join(err, f.put(taken, "theirs", nil, nil))
		}, procpb.State_FAILED},
		{"no right to the directory", 0, func(_ *table, f files, home, _ uint64) error {
			root, mode := uint32(0), uint32(0o755)
			_, err := f.tree.Do(&metapb.Command{Cred: rootCred, Op: &metapb.Command_SetAttr{SetAttr: &metapb.SetAttr{Ino: home, Uid: &root, Mode: &mode}}})
			return err
		}, procpb.State_FAILED},
		{"replaced by a link", 0, func(x *table, f files, home, private uint64) error {
			out, err := f.walk(rootCred, OutDir)
			name := []byte("1-1")
			_, err1 := f.tree.Do(&metapb.Command{Cred: rootCred, Op: &metapb.Command_Rename{Rename: &metapb.Rename{Parent: out, Name: name, NewParent: home, NewName: []byte("aside")}}})
			_, err2 := f.tree.Do(&metapb.Command{Cred: rootCred, Op: &metapb.Command_Mknod{Mknod: &metapb.Mknod{
				Parent: out, Name: name, Type: uint32(sys.TypeSymlink), Mode: 0o777, Target: []byte("/home/ana/aside")}}})
			return errors.Join(err, err1, err2)
		}, procpb.State_FAILED},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := newTable(t)
			f := files{treeNow{context.Background(), x.tree}}
			home, err := f.under("/home", "ana", ana)
			if err != nil {
				t.Fatal(err)
			}
			id := x.submit(specOf(func(s *procpb.Spec) { s.Out, s.User = "/home/ana/result", ana }))
			private, err := f.under(OutDir, fmt.Sprintf("%d-1", id), ana)
			if err != nil {
				t.Fatal(err)
			}
			if err := f.put(private, "data", []byte("42"), ana); err != nil {
				t.Fatal(err)
			}
			x.start(id, 0, 1)
			if c.while != nil {
				if err := c.while(x, f, home, private); err != nil {
					t.Fatal(err)
				}
			}
			x.end(id, 0, 0, &procpb.Process{ExitCode: c.code})
			got, attr := x.file("/home/ana/result/data")
			if state := x.job(id).State; state != c.want || (attr != nil) != (c.want == procpb.State_EXITED) {
				t.Fatalf("expected %v, found %v with outputs %q; %s", c.want, state, got, x.task(id, 0).Why)
			}
			task := x.task(id, 0)
			status, _ := x.file(FilesDir(Name{id, -1, -1}) + "/status")
			if want := fmt.Sprintf(`"state":%q`, StateName(c.want)); !strings.Contains(status, want) || !strings.Contains(status, fmt.Sprintf(`"exit_code":%d`, task.ExitCode)) {
				t.Errorf("expected the status to say %s as the table does (%d), found %s", want, task.ExitCode, status)
			}
			if strings.Contains(task.Why, "inode") {
				t.Errorf("expected a reason with paths, found %q", task.Why)
			}
		})
	}
}

func TestExpireForgetsAJobWithItsFiles(t *testing.T) {
	x := newTable(t)
	old := x.submit(specOf())
	x.start(old, 0, 1)
	x.end(old, 0, 0, &procpb.Process{})
	before := x.now + 1
	x.now += 1e9
	young := x.submit(specOf())
	x.start(young, 0, 1)
	x.end(young, 0, 0, &procpb.Process{})
	waits := x.submit(specOf())
	if res := x.must(&procpb.Command{Op: &procpb.Command_Expire{Expire: &procpb.Expire{BeforeNs: before, Max: 10}}}); res.Count != 1 {
		t.Fatalf("expected one job forgotten, found %d", res.Count)
	}
	if x.job(old) != nil || x.task(old, 0) != nil || x.job(young) == nil || x.job(waits) == nil {
		t.Fatal("expected the old job gone and the others there")
	}
	if _, attr := x.file(FilesDir(Name{old, -1, -1})); attr != nil {
		t.Fatal("the files of a forgotten job are still there")
	}
	if _, attr := x.file(FilesDir(Name{young, -1, -1}) + "/status"); attr == nil {
		t.Fatal("the files of another job are gone")
	}
}

// TestCountsAgree runs commands at random: what jobs count is what their tasks
// are, what runs on a node is listed there, and the model that a leader follows
// by what is published is the one that it would load.
func TestCountsAgree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x := newTable(t)
		m, err := loadModel(x.rows, 0)
		if err != nil {
			t.Fatalf("%v", err)
		}
		x.m.hub.take()
		var jobs []uint64
		versions := map[uint64][]uint64{} // that a job had after some step
		steps := rapid.IntRange(1, 60).Draw(t, "steps")
		for range steps {
			x.random(t, &jobs)
			for _, id := range jobs {
				versions[id] = append(versions[id], x.job(id).Version)
			}
		}
		x.checkSince(t, versions)
		for _, d := range x.m.hub.take() {
			m.follow(&d, 0)
		}
		x.checkCounts(t, jobs)
		want, err := loadModel(x.rows, 0)
		if err != nil {
			t.Fatalf("%v", err)
		}
		if !slices.Equal(m.order, want.order) {
			t.Fatalf("expected jobs %v, found %v", want.order, m.order)
		}
		for _, id := range want.order {
			for i, tm := range want.jobs[id].tasks {
				if have := m.jobs[id].tasks[i]; !Over(tm.row.State) && (have == nil || !proto.Equal(have.row, tm.row)) {
					t.Fatalf("job %d: expected task %v, found %v", id, tm.row, have)
				}
			}
			if !proto.Equal(m.jobs[id].row, want.jobs[id].row) {
				t.Fatalf("expected job %v, found %v", want.jobs[id].row, m.jobs[id].row)
			}
		}
		if have, want := liveOf(m), liveOf(want); !maps.Equal(have, want) {
			t.Fatalf("expected %v to run, found %v", want, have)
		}
		rows, err := list(x.rows, &procpb.ListRequest{})
		if err != nil {
			t.Fatalf("%v", err)
		}
		open := slices.DeleteFunc(rows.Jobs, func(i *procpb.JobInfo) bool { return Over(i.Job.State) })
		if have := m.list(&procpb.ListRequest{}).Jobs; !slices.EqualFunc(have, open, func(a, b *procpb.JobInfo) bool { return proto.Equal(a.Job, b.Job) }) {
			t.Fatalf("expected the list %v, found %v", open, have)
		}
	})
}

// liveOf are the tasks that a model has as running, by job and index.
func liveOf(m *model) map[[2]uint64]bool {
	out := map[[2]uint64]bool{}
	for id, j := range m.live {
		for i := range j.live {
			out[[2]uint64{id, uint64(i)}] = true
		}
	}
	return out
}

// checkSince compares what is remembered of changes with the rows: between now and any version that somebody may have seen.
func (x *table) checkSince(t *rapid.T, versions map[uint64][]uint64) {
	for id, seen := range versions {
		now := x.job(id).Version
		for _, v := range append(seen, 0) {
			want := map[uint32]*procpb.Task{}
			if err := loadTasks(x.rows, id, 0, func(row *procpb.Task) bool {
				if row.Version > v {
					want[row.Index] = row
				}
				return true
			}); err != nil {
				t.Fatalf("%v", err)
			}
			have, ended, ok := x.m.hub.since(id, v, now)
			var ends []end
			for _, e := range x.ends {
				if e.job == id && e.version > v {
					ends = append(ends, e)
				}
			}
			if !slices.EqualFunc(ended, ends, func(r *procpb.Report, e end) bool {
				return r.Index == e.index && r.Rank == e.rank && r.Epoch == e.epoch && r.Process == nil && string(r.Stdout) == "out\n" && string(r.Stderr) == "err\n"
			}) {
				t.Fatalf("job %d since version %d of %d: expected the ends %v, found %v", id, v, now, ends, ended)
			}
			if !ok || len(have) != len(want) {
				t.Fatalf("job %d since version %d of %d: expected %v, found %v (%v)", id, v, now, want, have, ok)
			}
			for _, row := range have {
				if !proto.Equal(row, want[row.Index]) {
					t.Fatalf("job %d since version %d of %d: expected %v, found %v", id, v, now, want[row.Index], row)
				}
			}
		}
	}
}

// random runs one command.
func (x *table) random(t *rapid.T, jobs *[]uint64) {
	if len(*jobs) == 0 || rapid.IntRange(0, 4).Draw(t, "new") == 0 {
		s := specOf(func(s *procpb.Spec) {
			s.Size = rapid.Uint32Range(1, 3).Draw(t, "size")
			s.Retries = rapid.Uint32Range(0, 2).Draw(t, "retries")
			if rapid.Bool().Draw(t, "array") {
				s.Array, s.Last = true, rapid.Uint32Range(0, 3).Draw(t, "last")
			}
			if len(*jobs) > 0 && rapid.Bool().Draw(t, "after") {
				s.After = []*procpb.After{{Job: rapid.SampledFrom(*jobs).Draw(t, "on"), Any: rapid.Bool().Draw(t, "any")}}
			}
		})
		if !s.Array && len(s.After) == 0 && rapid.Bool().Draw(t, "prompt") {
			*jobs = append(*jobs, x.submitAndStart(s, rapid.Uint64Range(0, 2).Draw(t, "gap")))
			return
		}
		*jobs = append(*jobs, x.submit(s))
		return
	}
	id := rapid.SampledFrom(*jobs).Draw(t, "job")
	var open []*procpb.Task
	if err := loadTasks(x.rows, id, 0, func(t *procpb.Task) bool {
		if !Over(t.State) {
			open = append(open, t)
		}
		return true
	}); err != nil || len(open) == 0 {
		return
	}
	task := rapid.SampledFrom(open).Draw(t, "task")
	switch rapid.IntRange(0, 9).Draw(t, "what") {
	case 0:
		x.must(&procpb.Command{Op: &procpb.Command_Kill{Kill: &procpb.Kill{Job: id, Indices: []uint32{task.Index}, Signal: sigKill, By: "test"}}})
	case 1:
		node := rapid.Uint64Range(1, 3).Draw(t, "node")
		n := &procpb.Node{}
		decode(x.rows[string(key(rowNode, node))], n)
		x.must(&procpb.Command{Op: &procpb.Command_LoseNode{LoseNode: &procpb.LoseNode{Node: node, Fence: n.Fence, Why: "test"}}})
	case 2:
		x.must(&procpb.Command{Op: &procpb.Command_Refuse{Refuse: &procpb.Refuse{Job: id, Why: "test"}}})
	default:
		if task.State == procpb.State_QUEUED {
			nodes := make([]uint64, (&command{tx: x.rows}).spec(id).Size)
			for i := range nodes {
				nodes[i] = rapid.Uint64Range(1, 3).Draw(t, "on")
			}
			x.start(id, task.Index, nodes...)
			return
		}
		for rank, p := range task.Procs {
			if !Over(p.State) {
				x.end(id, task.Index, uint32(rank), &procpb.Process{ExitCode: rapid.Uint32Range(0, 1).Draw(t, "code")})
				return
			}
		}
	}
}

func (x *table) checkCounts(t *rapid.T, jobs []uint64) {
	on := map[string]bool{}
	for _, id := range jobs {
		j := x.job(id)
		have := &procpb.Job{}
		if err := loadTasks(x.rows, id, 0, func(task *procpb.Task) bool {
			*count(have, task.State)++
			for _, p := range task.Procs {
				if task.State == procpb.State_RUNNING && !Over(p.State) {
					on[string(key(rowOn, p.Node, id, uint64(task.Index)))] = true
				}
			}
			return true
		}); err != nil {
			t.Fatalf("%v", err)
		}
		for s := procpb.State_WAITING; s <= procpb.State_CANCELLED; s++ {
			if s != procpb.State_RESERVING && *count(j, s) != *count(have, s) {
				t.Fatalf("job %d: expected %d tasks %v, it counts %d", id, *count(have, s), s, *count(j, s))
			}
		}
		if active := x.rows[string(key(rowActive, id))] != nil; active == Over(j.State) || Over(j.State) != (j.EndedNs != 0) {
			t.Fatalf("job %d is %v, ended %d, and listed as active: %v", id, j.State, j.EndedNs, active)
		}
	}
	for k := range x.rows {
		if k[0] == rowOn && !on[k] {
			t.Fatalf("row %x says that something runs there", k)
		}
		delete(on, k)
	}
	if len(on) > 0 {
		t.Fatalf("rows are missing for what runs: %x", slices.Collect(maps.Keys(on)))
	}
}

// People are told what is wrong, not in which operation of ours.
func TestForPeople(t *testing.T) {
	inner := sys.E(sys.Op("meta.Rename"), sys.Exist, sys.Subject("out"), "it is there")
	for _, err := range []error{inner, sys.E(sys.Op("proc.publish"), inner)} {
		if text := forPeople(err).Error(); strings.Contains(text, "meta.") || strings.Contains(text, "proc.") || !strings.Contains(text, "it is there") || !sys.Is(forPeople(err), sys.Exist) {
			t.Errorf("told as %q", text)
		}
	}
}
