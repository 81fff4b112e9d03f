package koinon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/koinon/koinon/internal/proc/procpb"
	"github.com/koinon/koinon/internal/proc/proctest"
	"github.com/koinon/koinon/internal/sys"
)

// What a job asks for comes back as it was given.
func TestJobSpecRoundTrip(t *testing.T) {
	table := proctest.New(1)
	p := NewProcs(table, nil)
	want := JobSpec{
		Name: "n", Command: []string{"a", "{}"}, Env: []string{"A=b"}, Dir: "/d", CPUs: 0.25, Memory: 1 << 20, Size: 3, Labels: map[string]string{"b": "2", "a": "1"},
		Nodes: []uint64{2, 3}, Pack: true, Timeout: time.Minute, Grace: time.Second, Retries: 2, Array: &IndexRange{First: 3, Last: 9}, AtOnce: 4,
		After: []Dependency{{Job: 7}, {Job: 8, Any: true}}, Out: "/o/{}",
	}
	id, err := p.Submit(t.Context(), want)
	if err != nil {
		t.Fatal(err)
	}
	d, err := p.Inspect(t.Context(), fmt.Sprint(id))
	if err != nil || !reflect.DeepEqual(d.Spec, want) {
		t.Errorf("got %+v, %v\nwant %+v", d.Spec, err, want)
	}
	items := JobSpec{Command: []string{"a"}, CPUs: 1, Size: 1, Items: []Item{{Text: "x", Bytes: map[uint64]int64{1: 5}}, {Text: "y"}}}
	id, err = p.Submit(t.Context(), items)
	if err != nil {
		t.Fatal(err)
	}
	if d, err := p.Inspect(t.Context(), fmt.Sprint(id)); err != nil || !reflect.DeepEqual(d.Spec, items) || d.TaskList[1].Item != "y" {
		t.Errorf("got %+v, %v\nwant %+v", d.Spec, err, items)
	}
}

// Nothing asked for is one CPU; memory alone is memory alone.
func TestJobSpecDefaults(t *testing.T) {
	table := proctest.New(1)
	p := NewProcs(table, nil)
	for _, tc := range []struct {
		ask  JobSpec
		want *procpb.Resources
	}{
		{JobSpec{}, &procpb.Resources{CpuMilli: 1000}},
		{JobSpec{Memory: 5}, &procpb.Resources{Memory: 5}},
		{JobSpec{CPUs: 0.0115, Memory: 5 << 20}, &procpb.Resources{CpuMilli: 12, Memory: 5 << 20}},
	} {
		tc.ask.Command = []string{"true"}
		id, err := p.Submit(t.Context(), tc.ask)
		if err != nil {
			t.Fatal(err)
		}
		if s := table.Spec(id); s.Each.String() != tc.want.String() || s.Size != 1 || s.User == nil {
			t.Errorf("%+v is %v", tc.ask, s)
		}
	}
}

// A job's exit code is never 0 unless all of it succeeded.
func TestJobExit(t *testing.T) {
	for _, tc := range []struct {
		state State
		code  int
		want  int
	}{
		{StateExited, 0, 0}, {StateFailed, 3, 3}, {StateKilled, 143, 143}, {StateLost, 0, 125}, {StateCancelled, 0, 125}, {StateLost, 4, 4}, {StateRunning, 0, 125},
	} {
		if got := (&Job{State: tc.state, ExitCode: exitCode(tc.state, uint32(tc.code))}).Exit(); got != tc.want {
			t.Errorf("%s with %d is %d, want %d", tc.state, tc.code, got, tc.want)
		}
	}
}

// What has no exit code says none: not that it succeeded.
func TestNoExitCode(t *testing.T) {
	for _, tc := range []struct {
		state procpb.State
		code  uint32
		want  string
	}{
		{procpb.State_QUEUED, 0, ""}, {procpb.State_RUNNING, 0, ""}, {procpb.State_CANCELLED, 0, ""}, {procpb.State_LOST, ExitTrouble, ""},
		{procpb.State_EXITED, 0, `"exit_code":0`}, {procpb.State_FAILED, 3, `"exit_code":3`}, {procpb.State_KILLED, 143, `"exit_code":143`},
	} {
		table := proctest.New(1)
		p := NewProcs(table, nil)
		id, err := p.Submit(t.Context(), JobSpec{Command: []string{"true"}})
		if err != nil {
			t.Fatal(err)
		}
		table.Set(id, 0, tc.state, tc.code)
		jobs, _, err := p.Jobs(t.Context(), ListJobs{Ended: true})
		if err != nil {
			t.Fatal(err)
		}
		d, err := p.Inspect(t.Context(), fmt.Sprint(id))
		if err != nil {
			t.Fatal(err)
		}
		for what, v := range map[string]any{"ps": jobs[0], "inspect": d.Job, "task": d.TaskList[0]} {
			text, err := json.Marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			if has := strings.Contains(string(text), `"exit_code"`); has != (tc.want != "") || !strings.Contains(string(text), tc.want) {
				t.Errorf("%s of %v: %q expected, found %s", what, tc.state, tc.want, text)
			}
		}
	}
	lost := newTask(&procpb.Spec{Size: 1}, &procpb.Task{State: procpb.State_LOST, Procs: []*procpb.Process{{State: procpb.State_LOST, ExitCode: ExitTrouble}}})
	if lost.Processes[0].ExitCode != nil {
		t.Errorf("a lost process has exit code %d", *lost.Processes[0].ExitCode)
	}
}

// What could not be started where it was placed is as if it had never been placed.
func TestUnstartedTask(t *testing.T) {
	unstarted := &procpb.Process{State: procpb.State_LOST, Unstarted: true, Node: 1}
	queued := &procpb.Task{State: procpb.State_QUEUED, Epoch: 3, Unstarted: 2, StartedNs: 7, Why: "the mount died", Procs: []*procpb.Process{unstarted}}
	if task := newTask(&procpb.Spec{Size: 1}, queued); task.Try != 1 || task.Started != nil || len(task.Processes) > 0 || task.Why != queued.Why {
		t.Errorf("found %+v", task)
	}
	lost := &procpb.Task{State: procpb.State_LOST, Epoch: 1, StartedNs: 7, Procs: []*procpb.Process{unstarted, {State: procpb.State_LOST, Node: 2}}}
	if task := newTask(&procpb.Spec{Size: 2}, lost); task.Try != 1 || task.Started == nil || len(task.Processes) != 2 {
		t.Errorf("found %+v", task)
	}
}

// When the leader cannot be reached any more, those who follow are told; an
// error of their own ends it, too.
func TestFollowEnds(t *testing.T) {
	table := proctest.New(1)
	p := NewProcs(table, nil)
	id, err := p.Submit(t.Context(), JobSpec{Command: []string{"true"}})
	if err != nil {
		t.Fatal(err)
	}
	table.Start(id, 0, 1)
	table.Write(id, 0, 0, "x", "")
	full := errors.New("full")
	if _, err := p.Follow(t.Context(), fmt.Sprint(id), FollowOptions{Output: func(Chunk) error { return full }}); !errors.Is(err, full) {
		t.Errorf("an output that takes nothing: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	seen := make(chan Job, 100)
	ended := make(chan error, 1)
	go func() {
		_, err := p.Follow(ctx, fmt.Sprint(id), FollowOptions{Changed: func(j Job) { seen <- j }})
		ended <- err
	}()
	if j := <-seen; j.State != StateRunning || j.Size != 1 || !slices.Equal(j.Command, []string{"true"}) {
		t.Errorf("the job is %+v", j)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) && !sys.Is(err, sys.Interrupted) {
		t.Errorf("after the end of ctx: %v", err)
	}
	go func() {
		_, err := p.Follow(t.Context(), fmt.Sprint(id), FollowOptions{Changed: func(j Job) { seen <- j }})
		ended <- err
	}()
	<-seen
	table.Break(sys.E(sys.Unavailable, "no majority"))
	if err := <-ended; !sys.Is(err, sys.Unavailable) {
		t.Errorf("without a majority: %v", err)
	}
}

// What short processes wrote comes with the news of their ends: nobody asks their nodes. That of others is asked for, and told once.
func TestFollowHearsOfShortProcesses(t *testing.T) {
	table := proctest.New(2)
	p := NewProcs(table, nil)
	id, err := p.Submit(t.Context(), JobSpec{Command: []string{"true"}, Size: 2})
	if err != nil {
		t.Fatal(err)
	}
	follow := func(name string, want State) string {
		var got strings.Builder
		job, err := p.Follow(t.Context(), name, FollowOptions{Output: func(c Chunk) error {
			fmt.Fprintf(&got, "%s %v %q %v; ", c.Process, c.Stderr, c.Data, c.End)
			return nil
		}})
		if err != nil || job.State != want {
			t.Errorf("%s is %+v, %v", name, job, err)
		}
		return got.String()
	}
	table.Start(id, 0, 1, 2)
	table.Write(id, 0, 0, "out", "err")
	table.End(id, 0, 0, 3)
	table.End(id, 0, 1, 0)
	const zero, one = `1:0 false "out" false; 1:0 true "err" false; 1:0 false "" true; `, `1:1 false "" true; `
	if got := follow("1", StateFailed); got != zero+one || table.Calls("Output") != 0 {
		t.Errorf("%d requests for output, told: %s", table.Calls("Output"), got)
	}
	if got := follow("1:1", StateExited); got != one {
		t.Errorf("of one rank: %s", got)
	}

	id, err = p.Submit(t.Context(), JobSpec{Command: []string{"true"}})
	if err != nil {
		t.Fatal(err)
	}
	table.Start(id, 0, 1)
	table.Write(id, 0, 0, "early ", "")
	go func() {
		_ = table.Await(t.Context(), func() bool { return table.Calls("Output") > 1 }) // one has brought the beginning
		table.Write(id, 0, 0, "late", "")
		table.End(id, 0, 0, 1)
	}()
	if got := follow("2", StateFailed); got != `2 false "early " false; 2 false "late" false; 2 false "" true; ` {
		t.Errorf("of a process that is followed: %s", got)
	}
}

// earlier is a table that tells of tries that were over before anybody looked.
type earlier struct {
	*proctest.Table
	ended []*procpb.Report
}

func (e earlier) Wait(ctx context.Context, req *procpb.WaitRequest) (*procpb.WaitReply, error) {
	r, err := e.Table.Wait(ctx, req)
	if err == nil {
		r.Ended = append(e.ended, r.Ended...)
	}
	return r, err
}

// A try that was followed by another one before its start was heard of has its output told, too: as it was heard, or by its node.
func TestFollowHearsOfEarlierTries(t *testing.T) {
	table := proctest.New(1)
	p := NewProcs(earlier{table, []*procpb.Report{{Job: 1, Epoch: 1, Node: 1, Stdout: []byte("first")}, {Job: 1, Epoch: 2, Node: 1, Recorded: true}}}, nil)
	id, err := p.Submit(t.Context(), JobSpec{Command: []string{"false"}, Retries: 2})
	if err != nil {
		t.Fatal(err)
	}
	big := strings.Repeat("x", 5000)
	for _, text := range []string{"first", big, "third"} {
		table.Start(id, 0, 1)
		table.Write(id, 0, 0, text, "")
		table.End(id, 0, 0, 1)
	}
	got := map[string]int{}
	if _, err := p.Follow(t.Context(), "1", FollowOptions{Output: func(c Chunk) error { got[string(c.Data)]++; return nil }}); err != nil {
		t.Fatal(err)
	}
	if want := map[string]int{"first": 1, big: 1, "third": 1, "": 3}; !maps.Equal(got, want) || table.Calls("Output") != 1 {
		t.Errorf("%d requests, told: %v", table.Calls("Output"), got)
	}
}

// held puts the bytes of a file on nodes by its name.
func held(c *Client, where map[string]map[sys.NodeID]int64) {
	byIno := map[sys.Ino]map[sys.NodeID]int64{}
	for name, at := range where {
		info, err := c.Stat(context.Background(), name)
		if err != nil {
			panic("expected " + name + " to be there, found " + err.Error())
		}
		byIno[sys.Ino(info.Ino())] = at
	}
	c.locate = func(_ context.Context, ino sys.Ino) (map[sys.NodeID]int64, error) { return byIno[ino], nil }
}

func TestLocateAndItems(t *testing.T) {
	ctx := t.Context()
	c := newClient(t)
	for _, dir := range []string{"/d/e", "/d/.h"} {
		if err := c.MkdirAll(ctx, dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"/d/one", "/d/two", "/d/e/three", "/d/.h/four", "/d/empty"} {
		data := []byte("bytes")
		if path.Base(name) == "empty" {
			data = nil
		}
		if err := c.WriteFile(ctx, name, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	held(c, map[string]map[sys.NodeID]int64{"/d/one": {1: 5, 2: 5}, "/d/two": {2: 5}, "/d/e/three": {3: 5}})
	for name, want := range map[string]Located{
		"/d/one":   {Bytes: map[uint64]int64{1: 5, 2: 5}, Total: 5, Files: 1},
		"/d":       {Bytes: map[uint64]int64{1: 5, 2: 10, 3: 5}, Total: 20, Files: 5},
		"/d/empty": {Bytes: map[uint64]int64{}, Files: 1},
	} {
		if got, err := c.Locate(ctx, name); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, %v, want %+v", name, got, err, want)
		}
	}
	if _, err := c.Locate(ctx, "/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what is not there: %v", err)
	}
	table := proctest.New(3)
	id, err := NewProcs(table, c).Submit(ctx, JobSpec{Command: []string{"x"}, Near: "/d"})
	if s := table.Spec(id); err != nil || !slices.EqualFunc(s.Near, heldBy(map[uint64]int64{1: 5, 2: 10, 3: 5}), func(a, b *procpb.Held) bool { return a.Node == b.Node && a.Bytes == b.Bytes }) || s.NearPath != "/d" {
		t.Errorf("near is %v, %v", s, err)
	}
	for name, target := range map[string]string{"link": "e", "nowhere": "none", "self": "self", "file": "one"} {
		if err := c.Symlink(ctx, target, "/d/"+name); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		pattern, dir string
		want         []string
	}{
		{"/d/*", "/d", []string{"e", "empty", "file", "link", "nowhere", "one", "self", "two"}},
		{"/d/t*", "", []string{"d/two"}},
		{"/d/*/*", "/d/e", []string{"three", "../link/three"}},
		{"/d/.h/*", "/d/e", []string{"../.h/four"}},
		{"/d/[eo]*", "/", []string{"d/e", "d/empty", "d/one"}},
		{"/d/one", "/d", []string{"one"}},
		{"/d/*/", "/d", []string{"e", "link"}},
		{"/d/one/", "/d", nil},
		{"/d/one/*", "/d", nil},
		{"/none/*", "/d", nil},
		{"/d/[", "/d", nil},
	} {
		items, err := c.Items(ctx, tc.pattern, tc.dir)
		var got []string
		for _, i := range items {
			got = append(got, i.Text)
			if i.Text == "one" && !maps.Equal(i.Bytes, map[uint64]int64{1: 5, 2: 5}) {
				t.Errorf("one is at %v", i.Bytes)
			}
		}
		if !slices.Equal(got, tc.want) || (err == nil) != (tc.want != nil) {
			t.Errorf("%s from %s is %q, %v, want %q", tc.pattern, tc.dir, got, err, tc.want)
		}
	}
}

// Who waits for a part is told of its end when every mount sees what it wrote; the end of a job is told then in any case.
func TestWaitForAPartSeesItsFiles(t *testing.T) {
	table := proctest.New(2)
	p := NewProcs(table, nil)
	id, err := p.Submit(t.Context(), JobSpec{Command: []string{"true"}, Array: &IndexRange{First: 0, Last: 1}})
	if err != nil {
		t.Fatal(err)
	}
	for i, seen := range []int{1, 1} {
		table.Start(id, uint32(i), 1)
		table.End(id, uint32(i), 0, 0)
		name := []string{"1.0", "1"}[i]
		if job, err := p.Wait(t.Context(), name); err != nil || job.State != StateExited || table.Calls("Seen") != seen {
			t.Errorf("%s: %+v, %v, asked %d times", name, job, err, table.Calls("Seen"))
		}
	}
}
