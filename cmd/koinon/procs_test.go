//go:build linux && !client

package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	client "github.com/koinon/koinon"
	"github.com/koinon/koinon/internal/mountinfo"
	"github.com/koinon/koinon/internal/proc/procpb"
	"github.com/koinon/koinon/internal/proc/proctest"
	"github.com/koinon/koinon/internal/sys"
)

// jobs is a command line over a process table that does what the test says,
// and a tree in memory that is mounted, so it is told, on /tree.
type jobs struct {
	t       *testing.T
	table   *proctest.Table
	tree    *memTree
	dir     string // where the user stands
	gone    error  // why that is not known
	signals chan os.Signal
	ctx     context.Context // of the commands; nil: the test's
}

func newJobs(t *testing.T) *jobs {
	return &jobs{t: t, table: proctest.New(3), tree: newMemTree(t), dir: "/tree", signals: make(chan os.Signal)}
}

// started is a command line under way.
type started struct {
	jobs     *jobs
	out, err safeBuffer
	code     chan int
}

// safeBuffer is written by a command while the test looks at it.
type safeBuffer struct {
	mu      sync.Mutex
	b       bytes.Buffer
	changed chan struct{}
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// await returns when what has been written holds want.
func (s *safeBuffer) await(t *testing.T, want string) {
	t.Helper()
	timeout := time.After(10 * time.Second)
	for {
		s.mu.Lock()
		if strings.Contains(s.b.String(), want) {
			s.mu.Unlock()
			return
		}
		if s.changed == nil {
			s.changed = make(chan struct{})
		}
		changed := s.changed
		s.mu.Unlock()
		select {
		case <-changed:
		case <-timeout:
			t.Fatalf("%q does not come to hold %q", s.String(), want)
		}
	}
}

func (j *jobs) start(in io.Reader, args ...string) *started {
	j.t.Helper()
	return j.startTo(in, nil, args...)
}

// startTo starts a command line, with its standard output to out if that is
// given.
func (j *jobs) startTo(in io.Reader, out io.Writer, args ...string) *started {
	s := &started{jobs: j, code: make(chan int, 1)}
	if out == nil {
		out = &s.out
	}
	a := &app{in: in, out: out, err: &s.err}
	p := newProcsApp(a)
	p.open = func(context.Context) (*client.Procs, error) { return client.NewProcs(j.table, j.tree.c), nil }
	p.where = func() (place, error) {
		return place{dir: j.dir, gone: j.gone, trees: func() (trees, error) {
			return trees{"lab", []mountinfo.Mount{
				{Path: "/", Root: "/", Type: "ext4"},
				{Path: "/tree", Root: "/", Type: "fuse.koinon", Source: "koinon:lab"},
				{Path: "/other", Root: "/", Type: "fuse.koinon", Source: "koinon:home"},
			}}, nil
		}}, nil
	}
	p.signals = func() (<-chan os.Signal, func()) { return j.signals, func() {} }
	p.same = 0
	root := newRootCommand(a)
	for _, c := range root.Commands() {
		if c.GroupID == groupProcs {
			root.RemoveCommand(c)
		}
		if c.Name() == "node" {
			for _, sub := range c.Commands() {
				if strings.HasSuffix(sub.Name(), "drain") {
					c.RemoveCommand(sub)
				}
			}
			c.AddCommand(newNodeDrainCommand(p), newNodeUndrainCommand(p))
		}
	}
	addTo(root, groupProcs, processCommands(p))
	checkArguments(root)
	root.SetArgs(args)
	root.SetOut(out)
	root.SetErr(&s.err)
	ctx := cmp.Or(j.ctx, j.t.Context())
	go func() { s.code <- a.exitCode(root.ExecuteContext(ctx)) }()
	return s
}

// ends waits for the end of a command line, which must be as wanted.
func (s *started) ends(code int, out, err string) {
	s.jobs.t.Helper()
	select {
	case got := <-s.code:
		if got != code || s.out.String() != out || s.err.String() != err {
			s.jobs.t.Errorf("exit code %d, %q, %q; want %d, %q, %q", got, s.out.String(), s.err.String(), code, out, err)
		}
	case <-time.After(10 * time.Second):
		s.jobs.t.Fatalf("it does not end; it has written %q and %q", s.out.String(), s.err.String())
	}
}

// made waits for a job.
func (j *jobs) made(id uint64) *procpb.Spec {
	j.t.Helper()
	j.await(func() bool { return j.table.Job(id) != nil })
	return j.table.Spec(id)
}

func (j *jobs) await(holds func() bool) {
	j.t.Helper()
	ctx, cancel := context.WithTimeout(j.t.Context(), 10*time.Second)
	defer cancel()
	if err := j.table.Await(ctx, holds); err != nil {
		j.t.Fatal("what is waited for does not come about")
	}
}

// runs runs a command line that needs nothing to be done meanwhile.
func (j *jobs) runs(args ...string) (out, errOut string, code int) {
	j.t.Helper()
	s := j.start(strings.NewReader(""), args...)
	select {
	case code = <-s.code:
	case <-time.After(10 * time.Second):
		j.t.Fatalf("koinon %q does not end", args)
	}
	return s.out.String(), s.err.String(), code
}

var nothing = strings.NewReader("")

// A single process: its bytes as they are, its exit code, no word of Koinon's.
func TestRun(t *testing.T) {
	j := newJobs(t)
	for id, code := range []uint32{0, 1, 3, 130} {
		id := uint64(id + 1)
		s := j.start(nothing, "run", "--", "sh", "-c", "exit "+fmt.Sprint(code))
		spec := j.made(id)
		if spec.Size != 1 || spec.Array || spec.Dir != "/" || spec.User.GetUid() != uint32(os.Getuid()) || spec.Each.CpuMilli != 1000 {
			t.Errorf("submitted is %v", spec)
		}
		j.table.Start(id, 0, 2)
		j.table.Write(id, 0, 0, "out", "err\n")
		s.out.await(t, "out") // while it runs
		j.table.Write(id, 0, 0, "put\n\x00", "")
		j.table.End(id, 0, 0, code)
		s.ends(int(code), "output\n\x00", "err\n")
	}
}

// What a node has already forgotten is read from the tree.
func TestRunForgottenOutput(t *testing.T) {
	j := newJobs(t)
	j.tree.ok("mkdir", "-p", "/.koinon/proc/1")
	j.tree.put("/.koinon/proc/1/stdout", "first second")
	s := j.start(nothing, "run", "--", "echo")
	j.made(1)
	j.table.Start(1, 0, 1)
	j.table.Write(1, 0, 0, "first ", "")
	s.out.await(t, "first ")
	j.table.Forget(1, 0)
	j.table.End(1, 0, 0, 0)
	s.ends(0, "first second", "")
}

// A node that goes away takes nothing along that is in the tree; the job is
// lost when the leader says so, not when the node does not answer.
func TestRunLost(t *testing.T) {
	j := newJobs(t)
	j.tree.ok("mkdir", "-p", "/.koinon/proc/1")
	j.tree.put("/.koinon/proc/1/stdout", "so far")
	s := j.start(nothing, "run", "--", "sleep", "9")
	j.made(1)
	j.table.Away(2, true)
	j.table.Start(1, 0, 2)
	j.await(func() bool { return j.table.Calls("Output") > 0 })
	j.table.Set(1, 0, procpb.State_LOST, 125)
	s.ends(125, "so far", "koinon: job 1 was lost with its node\n")
}

// A further try is followed as the first one was.
func TestRunRetried(t *testing.T) {
	j := newJobs(t)
	s := j.start(nothing, "run", "--retries", "1", "--", "flaky")
	j.made(1)
	j.table.Start(1, 0, 1)
	j.table.Write(1, 0, 0, "one\n", "")
	s.out.await(t, "one")
	j.table.Set(1, 0, procpb.State_QUEUED, 0)
	j.table.Start(1, 0, 2)
	j.table.Write(1, 0, 0, "two\n", "")
	s.out.await(t, "two")
	j.table.End(1, 0, 0, 0)
	s.ends(0, "one\ntwo\n", "")
}

// The lines of a gang stay whole and say whose they are; the first rank that
// fails gives the exit code.
func TestRunGang(t *testing.T) {
	j := newJobs(t)
	s := j.start(nothing, "run", "-n", "3", "--", "hello")
	if spec := j.made(1); spec.Size != 3 || spec.Stdin {
		t.Errorf("submitted is %v", spec)
	}
	j.table.Start(1, 0, 1, 2, 3)
	j.table.Write(1, 0, 1, "half a", "")
	j.table.Write(1, 0, 2, "whole\n", "")
	s.out.await(t, "[2] whole\n")
	j.table.Write(1, 0, 1, " line\nno end", "")
	s.out.await(t, "[1] half a line\n")
	j.table.End(1, 0, 1, 4)
	s.out.await(t, "[1] no end\n")
	j.table.End(1, 0, 0, 0)
	j.table.End(1, 0, 2, 143)
	s.ends(4, "[2] whole\n[1] half a line\n[1] no end\n", "koinon: job 1 failed with exit code 4, rank 1 on n2 first\n")
}

// The rank that is named is the one whose end decided: the first, and of a gang that is lost the first that was.
func TestRunGangNamesWhoDecided(t *testing.T) {
	j := newJobs(t)
	s := j.start(nothing, "run", "-n", "2", "--", "work")
	j.made(1)
	j.table.Start(1, 0, 1, 2)
	j.table.Why(1, 0, 0, "it followed")
	j.table.End(1, 0, 1, 4)
	j.table.End(1, 0, 0, 3)
	s.ends(4, "", "koinon: job 1 failed with exit code 4, rank 1 on n2 first\n")
	early, late := time.Unix(1, 0), time.Unix(2, 0)
	lost := client.Task{State: client.StateLost, Processes: []client.Process{
		{State: client.StateFailed, Rank: 0, Node: 1, Ended: &early}, {State: client.StateLost, Rank: 1, Node: 2, Ended: &late}, {State: client.StateRunning, Rank: 2, Node: 3},
	}}
	if got := endWords(lost); got != "was lost with its node, rank 1 on n2 first" {
		t.Errorf("lost: %q", got)
	}
}

func TestRunArray(t *testing.T) {
	j := newJobs(t)
	s := j.start(nothing, "run", "--array", "3-5%2", "--", "work", "{}")
	if spec := j.made(1); !spec.Array || spec.First != 3 || spec.Last != 5 || spec.AtOnce != 2 {
		t.Errorf("submitted is %v", spec)
	}
	for i := uint32(3); i <= 5; i++ {
		j.table.Start(1, i, 1)
		j.table.Write(1, i, 0, fmt.Sprint("task ", i), "")
		j.table.End(1, i, 0, i%4)
		s.out.await(t, fmt.Sprintf("[%d] task %d\n", i, i))
	}
	s.ends(3, "[3] task 3\n[4] task 4\n[5] task 5\n", "koinon: 2 of 3 tasks did not succeed: job 1.3 failed with exit code 3\n")
}

// Why it waits is told after a while, once for each reason; the output of what
// then runs is none the worse.
func TestRunWaits(t *testing.T) {
	j := newJobs(t)
	s := j.start(nothing, "run", "-n", "3", "--", "big")
	j.made(1)
	j.table.Explain(1, &procpb.Explanation{Why: "n1 refused; tried 1 times, next in 0.5 s"})
	s.err.await(t, "koinon: job 1 waits: n1 refused; tried 1 times, next in 0.5 s\n")
	j.table.Explain(1, &procpb.Explanation{Why: "n1 refused; tried 12 times, next in 3.1 s"})
	seen := j.table.Calls("Inspect")
	j.await(func() bool { return j.table.Calls("Inspect") >= seen+2 }) // the same but for its numbers
	j.table.Explain(1, &procpb.Explanation{Why: "room for 2 of 3 processes"})
	s.err.await(t, "koinon: job 1 waits: room for 2 of 3 processes\n")
	j.table.Start(1, 0, 1, 2, 3)
	for rank := range uint32(3) {
		j.table.End(1, 0, rank, 0)
	}
	s.ends(0, "", "koinon: job 1 waits: n1 refused; tried 1 times, next in 0.5 s\nkoinon: job 1 waits: room for 2 of 3 processes\n")
}

// Input is passed in order, once, also when little of it is taken at a time.
func TestRunInput(t *testing.T) {
	j := newJobs(t)
	in, w := io.Pipe()
	s := j.start(in, "run", "--", "sort")
	if spec := j.made(1); !spec.Stdin {
		t.Errorf("submitted is %v", spec)
	}
	j.table.Start(1, 0, 1)
	j.table.TakeInput(1, 3)
	if _, err := io.WriteString(w, "hello "); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, "world"); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	j.await(func() bool { in, end := j.table.Input(1); return in == "hello world" && end })
	j.table.End(1, 0, 0, 0)
	s.ends(0, "", "")

	// A process that ends without reading it does not wait for it.
	in, _ = io.Pipe()
	s = j.start(in, "run", "--", "true")
	j.made(2)
	j.table.Start(2, 0, 1)
	j.table.End(2, 0, 0, 0)
	s.ends(0, "", "")
}

// brokenPipe is an output that nobody reads.
type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, syscall.EPIPE }

// A job whose output nobody reads ends, as in a pipe of the shell.
func TestRunBrokenPipe(t *testing.T) {
	j := newJobs(t)
	s := j.startTo(nothing, brokenPipe{}, "run", "--", "yes")
	j.made(1)
	j.table.Start(1, 0, 1)
	j.table.Write(1, 0, 0, "y\n", "")
	s.ends(141, "", "")
	if k := j.table.Kills(); len(k) != 1 || k[0].Signal != 15 {
		t.Errorf("killed is %v", k)
	}
}

// Whoever submits and cannot read the number hears it with the error: to submit
// again would be to run it twice.
func TestRunNumberLost(t *testing.T) {
	j := newJobs(t)
	s := j.startTo(nothing, fullDisk{}, "run", "-d", "--", "true")
	j.made(1)
	s.ends(125, "", "koinon: job 1 is submitted, but its number could not be written: write /dev/stdout: no space left on device\n")
}

// Trouble of Koinon's own is 125, whatever kind; the job goes on, and the
// message says how it is followed.
func TestRunTrouble(t *testing.T) {
	j := newJobs(t)
	s := j.start(nothing, "run", "--", "true")
	j.made(1)
	j.table.Start(1, 0, 1)
	j.table.Break(sys.E(sys.Unavailable, "no majority after 1m0s: no answer from n2, n3"))
	s.ends(125, "", "koinon: job 1 goes on, `koinon logs -f 1` and `koinon wait 1` follow it: no majority after 1m0s: no answer from n2, n3\n")
	for _, args := range [][]string{{"run", "--", "true"}, {"wait", "1"}} {
		if _, errOut, code := j.runs(args...); code != 125 || errOut != "koinon: no majority after 1m0s: no answer from n2, n3\n" {
			t.Errorf("%q: exit code %d, %q", args, code, errOut)
		}
	}
}

// What cannot be run says so, as in a shell.
func TestRunNotFound(t *testing.T) {
	j := newJobs(t)
	s := j.start(nothing, "run", "--", "nosuch")
	j.made(1)
	j.table.Start(1, 0, 1)
	j.table.Why(1, 0, 0, "nosuch: command not found")
	j.table.End(1, 0, 0, 127)
	s.ends(127, "", "koinon: job 1 failed with exit code 127: nosuch: command not found\n")
}

func TestRunDetached(t *testing.T) {
	j := newJobs(t)
	if out, errOut, code := j.runs("run", "-d", "--name", "nightly", "--", "backup"); out != "1\n" || errOut != "" || code != 0 {
		t.Errorf("%d, %q, %q", code, out, errOut)
	}
	if out, _, _ := j.runs("run", "-d", "-o", "json", "--", "backup"); out != "{\n  \"id\": 2\n}\n" {
		t.Errorf("json is %q", out)
	}
	if s := j.table.Spec(1); s.Name != "nightly" || s.Stdin {
		t.Errorf("submitted is %v", s)
	}
}

// Every flag reaches the job.
func TestRunFlags(t *testing.T) {
	j := newJobs(t)
	j.tree.ok("mkdir", "-p", "/data/in", "/data/.hidden", "/data/results")
	for _, name := range []string{"a.txt", "b.txt", "c.dat", ".d.txt"} {
		j.tree.put("/data/in/"+name, name)
	}
	j.dir = "/tree/data"
	t.Setenv("PASSED", "on")
	if _, errOut, code := j.runs("run", "-d", "-n", "2", "-c", "0.25", "-m", "512MiB", "--on", "n2", "--on", "host3", "--on", "arch=amd64", "--pack",
		"--env", "A=b=c", "--env", "PASSED", "--timeout", "90s", "--grace", "2s", "--retries", "3", "--each", "in/*.txt", "--at-once", "1",
		"--after", "ok:7", "--after", "any:8", "--out", "results/{}", "--near", "koinon:data", "--", "wc", "-w", "{}"); code != 0 {
		t.Fatal(errOut)
	}
	s := j.table.Spec(1)
	s.User = nil
	want := &procpb.Spec{
		Argv: []string{"wc", "-w", "{}"}, Env: []string{"A=b=c", "PASSED=on"}, Dir: "/data", Each: &procpb.Resources{CpuMilli: 250, Memory: 512 << 20}, Size: 2,
		Want: []*procpb.Label{{Key: "arch", Value: "amd64"}}, On: []uint64{2, 3}, Pack: true, TimeoutNs: 90e9, GraceNs: 2e9, Retries: 3, Array: true, Last: 1,
		AtOnce: 1, Items: []string{"in/a.txt", "in/b.txt"}, After: []*procpb.After{{Job: 7}, {Job: 8, Any: true}}, Out: "/data/results/{}", NearPath: "/data",
	}
	if s.String() != want.String() {
		t.Errorf("submitted is\n%v\nwant\n%v", s, want)
	}
	// From elsewhere, and with items elsewhere.
	j.dir = "/home/ada"
	if _, errOut, code := j.runs("run", "-d", "-C", "koinon:/data/.hidden", "--each", "/tree/data/in/*", "--", "cat", "{}"); code != 0 {
		t.Fatal(errOut)
	}
	if s := j.table.Spec(2); s.Dir != "/data/.hidden" || !slices.Equal(s.Items, []string{"../in/a.txt", "../in/b.txt", "../in/c.dat"}) {
		t.Errorf("submitted is %v", s)
	}
}

// What makes no sense is refused with 125, and nothing is submitted.
func TestRunRefuses(t *testing.T) {
	j := newJobs(t)
	j.dir = "/home/ada"
	j.tree.put("/file", "")
	for _, tc := range []struct{ args, want string }{
		{"", "a command is missing"},
		{"--frob -- true", "unknown flag: --frob"},
		{"-n 0 -- true", "from 1 on"},
		{"-n x -- true", "--gang is \"x\": give a number"},
		{"-n 300 -- true", "at most 256 processes"},
		{"-c 0 -- true", "some CPU or memory"},
		{"-c -1 -- true", "some CPU or memory"},
		{"-c 1e9 -- true", "CPUs are a number from 0.01 to 1048576"},
		{"--retries 99999999999 -- true", "at most 2147483647"},
		{"--array 2147483647-2147483648 -- true", "at most 2147483647"},
		{"--array 0-9%2147483648 -- true", "at most 2147483647"},
		{"-o json -- true", "add -d, and use `koinon wait -o json"},
		{"-m 64MB -- true", "--memory is \"64MB\""},
		{"--timeout 5 -- true", "--timeout is \"5\": give a number and its unit, such as 30s"},
		{"--array 9-0 -- true", "0-99"},
		{"--array 0-9%0 -- true", "0-99"},
		{"--array 0,3 -- true", "0-99"},
		{"--array 0-9%2 --at-once 3 -- true", "give one of them"},
		{"--array 0-9 --each x -- true", "not both"},
		{"--at-once 3 -- true", "--array and --each"},
		{"--each koinon:/none/* -- true", "cannot expand --each /none/*: nothing in the tree matches"},
		{"--each koinon:/[ -- true", "close the ["},
		{"--retries -1 -- true", "--retries is -1: give a number"},
		{"--grace -1s -- true", "--grace is -1s: give a time"},
		{"--after 17 -- true", "ok:ID"},
		{"--after ok:0 -- true", "ok:ID"},
		{"--env =x -- true", "K=V"},
		{"--env NO_SUCH_VARIABLE -- true", "there is no such variable here"},
		{"--env KOINON_RANK=5 -- true", "Koinon's own"},
		{"--env KOINON_SIZE -- true", "Koinon's own"},
		{"--on nowhere -- true", "n1 (host1), n2 (host2), n3 (host3)"},
		{"--on =v -- true", "LABEL=V"},
		{"--on a=b --on a=c -- true", "no node has both"},
		{"-C . -- true", "write koinon:/"},
		{"-C koinon:/none -- true", "cannot start in /none: no such file or directory"},
		{"-C koinon:/file -- true", "cannot start in /file: not a directory"},
		{"-C /other/x -- true", `of cluster "home"`},
		{"--out results -- true", "not in the cluster's tree"},
		{"--out= -- true", "--out is empty"},
		{"--each= -- true", "--each is empty"},
		{"-n 2 --array= -- true", "--array is empty"},
		{"--near koinon:/none -- true", "cannot place near /none: no such file or directory: --near names"},
		{"--out koinon:/none/out -- true", "cannot put outputs into /none: no such file or directory: make"},
		{"-i -n 2 -- true", "single process"},
		{"-i -d -- true", "give one of them"},
		{"-i --retries 2 -- true", "cannot read again"},
	} {
		_, errOut, code := j.runs(append([]string{"run"}, strings.Fields(tc.args)...)...)
		if code != 125 || !strings.Contains(errOut, tc.want) || strings.Count(errOut, "koinon: ") != 1 {
			t.Errorf("run %s: exit code %d, %q; want 125 with %q", tc.args, code, errOut, tc.want)
		}
	}
	if n := j.table.Calls("Submit"); n != 0 {
		t.Errorf("%d were submitted", n)
	}
}

func TestLogs(t *testing.T) {
	j := newJobs(t)
	j.runs("run", "-d", "-n", "2", "--", "work")
	j.table.Start(1, 0, 1, 2)
	j.table.Write(1, 0, 0, "zero\n", "trouble\n")
	j.table.Write(1, 0, 1, "one", "")
	if out, errOut, code := j.runs("logs", "1"); out != "[0] zero\n[1] one\n" || errOut != "[0] trouble\n" || code != 0 {
		t.Errorf("%d, %q, %q", code, out, errOut)
	}
	if out, errOut, _ := j.runs("logs", "--stderr", "1"); out != "" || errOut != "[0] trouble\n" {
		t.Errorf("--stderr: %q, %q", out, errOut)
	}
	if out, errOut, code := j.runs("logs", "-o", "json", "1"); errOut != "" || code != 0 || out != `{"process":"1:0","stream":"stdout","text":"zero"}
{"process":"1:0","stream":"stderr","text":"trouble"}
{"process":"1:1","stream":"stdout","text":"one"}
` {
		t.Errorf("logs -o json: %d, %q, %q", code, out, errOut)
	}
	if out, errOut, _ := j.runs("logs", "--stdout", "1:0"); out != "zero\n" || errOut != "" {
		t.Errorf("1:0: %q, %q", out, errOut)
	}
	s := j.start(nothing, "logs", "-f", "1:1")
	s.out.await(t, "one")
	j.table.Write(1, 0, 1, " more", "")
	j.table.End(1, 0, 0, 0)
	j.table.End(1, 0, 1, 7)
	s.ends(0, "one more", "") // the job's exit code is wait's to tell
	j.tree.ok("mkdir", "-p", "/.koinon/proc/1:0")
	j.tree.put("/.koinon/proc/1:0/stdout", "kept\n")
	j.table.Forget(1, 0)
	if out, errOut, code := j.runs("logs", "1"); out != "[0] kept\n" || errOut != "" || code != 0 {
		t.Errorf("kept: %d, %q, %q", code, out, errOut)
	}
	if _, errOut, code := j.runs("logs", "--stdout", "--stderr", "1"); code != 2 || !strings.Contains(errOut, "give one of them") {
		t.Errorf("logs --stdout --stderr: %d, %q", code, errOut)
	}
	for arg, want := range map[string]string{"1:2": "no such rank", "1.0": "no array", "2": "no such job", "-f 1.0": "no array", "one": "a job's number"} {
		if _, errOut, code := j.runs(append([]string{"logs"}, strings.Fields(arg)...)...); code != 1 || !strings.Contains(errOut, want) {
			t.Errorf("logs %s: %d, %q", arg, code, errOut)
		}
	}
}

func TestKill(t *testing.T) {
	j := newJobs(t)
	j.runs("run", "-d", "--array", "0-3", "--", "work")
	for _, args := range [][]string{{"kill", "1.2"}, {"kill", "-s", "sigusr1", "1"}, {"kill", "-s", "9", "1"}} {
		if out, errOut, code := j.runs(args...); out+errOut != "" || code != 0 {
			t.Errorf("%q: %d, %q", args, code, out+errOut)
		}
	}
	if out, errOut, _ := j.runs("run", "-d", "--", "work"); out+errOut != "2\n" {
		t.Fatalf("run: %q", out+errOut)
	}
	if out, errOut, code := j.runs("kill", "-o", "json", "2", "9"); !strings.Contains(out, `"job": "2",`) || !strings.Contains(errOut, "job 9") || code != 1 {
		t.Errorf("kill -o json: %d, %q, %q", code, out, errOut)
	}
	var got []string
	for _, k := range j.table.Kills() {
		got = append(got, fmt.Sprint(k.Job, k.Indices, k.Signal, strings.Contains(k.By, "@")))
	}
	if want := []string{"1 [2] 15 true", "1 [] 10 true", "1 [] 9 true", "2 [] 15 true"}; !slices.Equal(got, want) {
		t.Errorf("killed is %q, want %q", got, want)
	}
	for _, tc := range []struct {
		args, want string
		code       int
	}{
		{"1", "nothing of job 1 runs or waits any more", 1}, {"-s HUP 1", "can be ended by TERM or KILL alone", 1}, {"8 9", "job 9: there is no such job", 1}, {"1:0", "signalled together", 1},
		{"1:10", "leave out :10", 1}, {"2.0", "2.0: the job is no array", 1}, {"-s HUP 2.1", "2.1: the job is no array", 1}, {"1.4", "1.4: the job has no such index", 1},
		{"-s FROB 1", "no signal", 2}, {"-s 65 1", "no signal", 2}, {"", "an argument is missing", 2},
	} {
		if _, errOut, code := j.runs(append([]string{"kill"}, strings.Fields(tc.args)...)...); code != tc.code || !strings.Contains(errOut, tc.want) {
			t.Errorf("kill %s: %d, %q", tc.args, code, errOut)
		}
	}
}

func TestPs(t *testing.T) {
	j := newJobs(t)
	j.runs("run", "-d", "--name", "nightly", "--array", "0-9", "--", "sh", "-c", "a b")
	j.runs("run", "-d", "--", "done")
	j.runs("run", "-d", "-n", "3", "--", "waits")
	j.table.Start(1, 0, 3)
	j.table.End(1, 0, 0, 5)
	j.table.Start(2, 0, 1)
	j.table.End(2, 0, 0, 0)
	j.table.Explain(3, &procpb.Explanation{Why: "room for 2 of 3"})
	columns := func(out string) []string {
		var lines []string
		for line := range strings.Lines(out) {
			f := strings.Fields(line)
			lines = append(lines, strings.Join(append(f[:4:4], f[7:]...), " "))
		}
		return lines
	}
	out, _, code := j.runs("ps")
	want := []string{"JOB STATE DONE EXIT WHERE COMMAND", "3 queued - - (room for 2 of 3) waits", "1 queued 1/10 5 n3 nightly: sh -c 'a b'"}
	if got := columns(out); code != 0 || !slices.Equal(got, want) {
		t.Errorf("%q\nwant %q", got, want)
	}
	if out, _, _ := j.runs("ps", "-a", "--limit", "2"); !strings.Contains(out, "done") || strings.Contains(out, "nightly") {
		t.Errorf("ps -a --limit 2 is %s", out)
	}
	if out, _, _ := j.runs("ps", "-u", "nobody-here", "-o", "json"); out != "[]\n" {
		t.Errorf("another user has %s", out)
	}
	if out, errOut, code := j.runs("ps", "-u", ""); code != 2 || out != "" || !strings.Contains(errOut, "--user is empty") {
		t.Errorf("ps -u '': %d, %q, %q", code, out, errOut)
	}
	if out, _, _ := j.runs("ps", "-o", "json", "-a"); strings.Count(out, `"id":`) != 3 || !strings.Contains(out, `"state": "exited"`) {
		t.Errorf("json is %s", out)
	}
}

func TestInspect(t *testing.T) {
	j := newJobs(t)
	j.runs("run", "-d", "-n", "2", "-m", "1GiB", "--on", "gpu=a", "--retries", "1", "--", "train")
	j.table.Explain(1, &procpb.Explanation{Why: "room for 1 of 2", Nodes: []*procpb.NodeReason{{Node: 1, Name: "host1", Room: 1}, {Node: 2, Name: "host2", Why: "has no label gpu=a"}},
		Refusals: []*procpb.Refusal{{Node: 1, Reason: "the tree is not mounted", Count: 3, AtNs: time.Now().UnixNano()}}})
	out, _, code := j.runs("inspect", "1")
	for _, want := range []string{"state      queued\n", "2 processes, each 1 CPU, 1.0 GiB", "only on    gpu=a", "1 waits: room for 1 of 2", "has no label gpu=a", "n1 refused 3 times", "the tree is not mounted"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not told in\n%s", want, out)
		}
	}
	j.table.Explain(1)
	j.table.Start(1, 0, 1, 3)
	j.table.End(1, 0, 1, 137)
	out, _, _ = j.runs("inspect", "1")
	for _, want := range []string{"state      running\n", "1:0", "n3", "137"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not told in\n%s", want, out)
		}
	}
	var again bytes.Buffer
	writeTasks(&again, &client.JobDetails{TaskList: []client.Task{{Why: "try 1 of 2 has failed; not mounted", Processes: []client.Process{{Why: "not mounted"}, {Why: "full"}}},
		{State: client.StateLost, Why: "n2 was lost", Item: "a\x1b\nb", Processes: []client.Process{{State: client.StateExited}, {State: client.StateLost, Why: "n2 was lost"}}}}}, time.Now())
	if out := again.String(); strings.Count(out, "not mounted") != 2 || !strings.Contains(out, "not mounted; full") || strings.Count(out, "n2 was lost") != 1 || strings.Count(out, `"a\x1b\nb"`) != 2 {
		t.Errorf("a reason is told more than once:\n%s", out)
	}
	if out, _, _ := j.runs("inspect", "1", "-o", "json"); !strings.Contains(out, `"name": "1:1"`) || !strings.Contains(out, `"files": "/.koinon/proc/1:1"`) {
		t.Errorf("json is %s", out)
	}
	if _, errOut, c := j.runs("inspect", "4"); code != 0 || c != 1 || !strings.Contains(errOut, "no such job") {
		t.Errorf("inspect 4: %d, %q", c, errOut)
	}
}

func TestTop(t *testing.T) {
	j := newJobs(t)
	j.runs("run", "-d", "--", "work")
	out, _, code := j.runs("top")
	if code != 0 || !strings.Contains(out, "n2    host2  up, tree not mounted  0 of 2  0 B of 4.0 GiB  0          arch=amd64  cgroup v2\n") || !strings.Contains(out, "work") {
		t.Errorf("%d\n%s", code, out)
	}
	if out, _, _ := j.runs("top", "-n", "2", "-o", "json"); strings.Count(out, `"nodes":`) != 2 {
		t.Errorf("twice is %s", out)
	}
}

func TestDrain(t *testing.T) {
	j := newJobs(t)
	for _, arg := range []string{"2", "n2", "host2"} {
		for _, verb := range []string{"drain", "undrain"} {
			if _, errOut, code := j.runs("node", verb, arg); code != 0 || j.table.Drained(2) != (verb == "drain") {
				t.Errorf("%s %s: %d, %q", verb, arg, code, errOut)
			}
		}
	}
	if out, _, code := j.runs("node", "drain", "-o", "json", "2"); code != 0 || !strings.Contains(out, `"node": 2,`) || !strings.Contains(out, `"draining": true`) {
		t.Errorf("drain -o json: %d, %s", code, out)
	}
	if _, errOut, code := j.runs("node", "drain", "hots2"); code != 1 || !strings.Contains(errOut, "n2 (host2)") {
		t.Errorf("%d, %q", code, errOut)
	}
}

// A jobs's numbers and the nodes complete.
func TestCompletesJobs(t *testing.T) {
	j := newJobs(t)
	j.runs("run", "-d", "--", "work")
	for args, want := range map[string]string{"kill ": "1\twork\n", "logs -f ": "1\twork\n", "node drain ": "n2\thost2\n", "run --on ": "n3\thost3\n", "kill -s KI": "KILL\n"} {
		words := strings.Split(args, " ")
		if out, _, _ := j.runs(append([]string{"__complete"}, words...)...); !strings.Contains(out, want) {
			t.Errorf("%q completes to %q", args, out)
		}
	}
}

func TestParseArray(t *testing.T) {
	for s, want := range map[string]string{"0-99": "{0 99} 0", "0-99%10": "{0 99} 10", "7": "{7 7} 0", "3-3%1": "{3 3} 1"} {
		r, most, err := parseArray(s)
		if err != nil || fmt.Sprintf("%v %d", *r, most) != want {
			t.Errorf("%s is %v, %d, %v", s, r, most, err)
		}
	}
	for _, s := range []string{"", "-", "a-b", "1-", "-1", "5-4", "0-9%", "0-9%x", "0-99999999999"} {
		if r, _, err := parseArray(s); err == nil {
			t.Errorf("%q is %v", s, r)
		}
	}
}

// A line that never ends is cut, and none of it is lost.
func TestTaggedLongLines(t *testing.T) {
	var out bytes.Buffer
	w := &tagged{name: "1", out: &out, err: &out}
	piece := strings.Repeat("x", 1000)
	for range 200 {
		if err := w.write(client.Chunk{Process: "1:0", Data: []byte(piece)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.write(client.Chunk{Process: "1:0", End: true}); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(out.String(), "x"); n != 200*1000 {
		t.Errorf("%d of %d bytes are there", n, 200*1000)
	}
	for line := range strings.Lines(out.String()) {
		if !strings.HasPrefix(line, "[0] x") || !strings.HasSuffix(line, "x\n") || len(line) > lineMax+2000 {
			t.Errorf("a line is %q", fit(line, 40))
		}
	}
	w.out = brokenPipe{}
	if err := w.write(client.Chunk{Process: "1", Data: []byte("x")}); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("the error is %v", err)
	}
}

func TestPsRefusesNegativeLimit(t *testing.T) {
	j := newJobs(t)
	if out, errOut, code := j.runs("ps", "--limit", "-1"); code != 2 || out != "" || !strings.Contains(errOut, "--limit is -1: give how many") {
		t.Errorf("exit %d, %q, %q", code, out, errOut)
	}
}
