//go:build linux

package devcluster

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/koinon/koinon/internal/config"
	"github.com/koinon/koinon/internal/daemon"
	"github.com/koinon/koinon/internal/sys"
)

// The life of a cluster as a user sees it.
func TestLife(t *testing.T) {
	opts := options(t, "")
	c, res := up(t, opts)
	if !res.Created || !reflect.DeepEqual(res.Started, []int{1, 2, 3}) || !res.MountStarted || len(res.Warnings) > 0 {
		t.Errorf("the first up did %+v", res)
	}
	expect(t, c, "leader follower follower")
	before := status(t, c)

	if _, res := up(t, opts); !res.AlreadyRunning() {
		t.Errorf("a second up did %+v", res)
	}
	if err := c.Kill(1); err != nil {
		t.Fatal(err)
	}
	expect(t, c, "down leader follower")
	expectError(t, c.Kill(1), sys.Other, "node 1", "koinon dev start 1")

	if err := c.Start(t.Context(), 1, 1, 2); err != nil {
		t.Fatal(err)
	}
	expect(t, c, "leader follower follower")

	if err := c.Kill(1, 2, 3); err != nil {
		t.Fatal(err)
	}
	expect(t, c, "down down down")
	if _, res := up(t, opts); !reflect.DeepEqual(res.Started, []int{1, 2, 3}) || res.MountStarted || res.Created {
		t.Errorf("up after all died did %+v", res)
	}

	if err := c.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	expect(t, c, "stopped stopped stopped")
	if s := status(t, c); !s.Stopped() {
		t.Errorf("after stop: %+v", s)
	}
	if err := c.Stop(t.Context()); err != nil {
		t.Errorf("stopping twice: %v", err)
	}

	c, _ = up(t, opts)
	for i, n := range status(t, c).Nodes {
		if was := before.Nodes[i]; n.Address != was.Address || n.Directory != was.Directory || n.ID != was.ID {
			t.Errorf("node %d came back as %+v, was %+v", n.Number, n, was)
		}
	}
	if err := c.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(opts.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("reset left the directory: %v", err)
	}
}

func TestOneNode(t *testing.T) {
	opts := options(t, "")
	opts.Nodes = 1
	c, _ := up(t, opts)
	expect(t, c, "leader")
}

// What is wrong with a node that serves is told where people look: when it
// starts, and in the status.
func TestNodeInTrouble(t *testing.T) {
	opts := options(t, "n2-damaged")
	var said []string
	opts.Progress = func(line string) { said = append(said, line) }
	c, res := up(t, opts)
	if want := []string{"node 2: it does not vote"}; !reflect.DeepEqual(res.Warnings, want) || !res.Mounted {
		t.Errorf("up warns %q, want %q", res.Warnings, want)
	}
	for _, n := range status(t, c).Nodes {
		if (n.Trouble == "it does not vote") != (n.Number == 2) {
			t.Errorf("node %d: trouble is %q", n.Number, n.Trouble)
		}
	}
	for range 2 { // the second time too
		if err := c.Kill(2); err != nil {
			t.Fatal(err)
		}
		said = nil
		if err := c.Start(t.Context(), 2); err != nil {
			t.Fatal(err)
		}
		if want := []string{"node 2 is up", "node 2: it does not vote"}; !reflect.DeepEqual(said, want) {
			t.Errorf("start said %q, want %q", said, want)
		}
	}
}

// Scripts rely on these names.
func TestStatusJSON(t *testing.T) {
	opts := options(t, "")
	opts.Nodes = 1
	c, _ := up(t, opts)
	text, err := json.Marshal(status(t, c))
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(c.Dir(), "mnt"); got["mount"] != want {
		t.Errorf("mount is %v, want %s", got["mount"], want)
	}
	n := got["nodes"].([]any)[0].(map[string]any)
	for key, want := range map[string]any{"number": 1.0, "id": 1.0, "role": "leader", "state": "up", "directory": filepath.Join(c.Dir(), "n1")} {
		if n[key] != want {
			t.Errorf("%s is %v, want %v", key, n[key], want)
		}
	}
	if pid, _ := n["pid"].(float64); pid < 2 {
		t.Errorf("pid is %v", n["pid"])
	}
	if addr, _ := n["address"].(string); !strings.HasPrefix(addr, "127.0.0.1:") {
		t.Errorf("address is %v", n["address"])
	}
}

func TestOtherNumberOfNodes(t *testing.T) {
	opts := options(t, "")
	up(t, opts)
	opts.Nodes = 5
	_, _, err := Up(t.Context(), t.Context(), opts)
	expectError(t, err, sys.Invalid, "3 nodes", "--nodes", "koinon dev reset")
	opts.Nodes = 100
	_, _, err = Up(t.Context(), t.Context(), opts)
	expectError(t, err, sys.Invalid, "--nodes", "1 to 9")
}

func TestPortTaken(t *testing.T) {
	opts := options(t, "")
	c, _ := up(t, opts)
	if err := c.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", c.nodes[1].addr)
	if err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(c.nodes[1].addr)
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = Up(t.Context(), t.Context(), opts)
	expectError(t, err, sys.Busy, "node 2", "port "+port, "ss -ltnp", "koinon dev up", "koinon dev reset")
	expect(t, c, "stopped stopped stopped")
	expectError(t, c.Start(t.Context(), 2), sys.Busy, "port "+port)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	up(t, opts)
}

func TestOthersDirectory(t *testing.T) {
	opts := options(t, "")
	own := filepath.Join(opts.Dir, "thesis.tex")
	if err := os.MkdirAll(opts.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(own, []byte("years of work"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, _, err := Up(t.Context(), t.Context(), opts)
	expectError(t, err, sys.NotEmpty, "thesis.tex", "--dir")
	_, err = Open(opts)
	expectError(t, err, sys.Other, "no dev cluster in "+opts.Dir, "koinon dev up")
	entries, err := os.ReadDir(opts.Dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("the directory now holds %v, %v", entries, err)
	}
}

// What a user put beside the cluster's state outlives it.
func TestResetKeepsOthersFiles(t *testing.T) {
	opts := options(t, "")
	c, _ := up(t, opts)
	notes := filepath.Join(opts.Dir, "notes.txt")
	if err := os.WriteFile(notes, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := config.SetCurrentIfAbsent(c.ClientConfig()); err != nil {
		t.Fatal(err)
	}
	if err := c.Reset(t.Context()); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(opts.Dir)
	if err != nil || len(entries) != 1 || entries[0].Name() != "notes.txt" {
		t.Errorf("reset left %v, %v", entries, err)
	}
	if is, err := config.IsCurrent(c.ClientConfig()); err != nil || is {
		t.Errorf("the deleted cluster is still the current one: %v", err)
	}
}

// A first up that was cut short is begun anew.
func TestCreationCutShort(t *testing.T) {
	opts := options(t, "")
	up(t, opts)
	c, err := Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(opts.Dir, "dev.toml"), filepath.Join(opts.Dir, creating)); err != nil {
		t.Fatal(err)
	}
	if _, res := up(t, opts); !res.Created {
		t.Errorf("got %+v", res)
	}
}

func TestNodeFails(t *testing.T) {
	opts := options(t, "n2-fails")
	_, _, err := Up(t.Context(), t.Context(), opts)
	if err == nil || !strings.Contains(err.Error(), "node 2 did not come up") || !strings.Contains(err.Error(), "made of cheese") {
		t.Fatalf("got %v", err)
	}
	c, err := Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, c, "stopped stopped stopped")
}

// A slip in a node's file is told, and keeps nobody from stopping the nodes.
func TestNodeFileIsWrong(t *testing.T) {
	opts := options(t, "")
	up(t, opts)
	file := filepath.Join(opts.Dir, "n2", "node.toml")
	raw, err := os.ReadFile(file)
	if err == nil {
		err = os.WriteFile(file, append([]byte("listne = 7\n"), raw...), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	c, err := Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	s, err := c.Status(t.Context())
	if err != nil || !strings.Contains(s.Nodes[1].Trouble, file) || s.Nodes[1].PID == 0 || s.Nodes[0].Trouble != "" {
		t.Errorf("found %+v, %v", s, err)
	}
	if err := c.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	expect(t, c, "stopped stopped stopped")
	_, _, err = Up(t.Context(), t.Context(), opts)
	for _, err := range []error{err, c.Start(t.Context(), 2)} {
		if err == nil || !strings.Contains(err.Error(), "listne") {
			t.Errorf("what is wrong with the file expected, found %v", err)
		}
	}
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	up(t, opts)
}

// A cluster that has served comes up without a node that cannot.
func TestMinorityFails(t *testing.T) {
	opts := options(t, "")
	c, _ := up(t, opts)
	if err := c.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Setenv(trouble, "n3-fails")
	c, res := up(t, opts)
	if len(res.Warnings) != 1 || !strings.Contains(res.Warnings[0], "made of cheese") {
		t.Errorf("warnings are %q", res.Warnings)
	}
	expect(t, c, "leader follower down")
	err := c.Start(t.Context(), 3)
	if err == nil || !strings.Contains(err.Error(), "made of cheese") {
		t.Errorf("start of the broken node: %v", err)
	}
}

// So it does without a node whose process cannot be recorded, as on a full disk.
func TestMinorityCannotBeStarted(t *testing.T) {
	opts := options(t, "")
	c, _ := up(t, opts)
	if err := c.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	inTheWay := filepath.Join(opts.Dir, "n2", "pid.new")
	if err := os.Mkdir(inTheWay, 0o700); err != nil {
		t.Fatal(err)
	}
	c, res := up(t, opts)
	if len(res.Warnings) != 1 || !strings.Contains(res.Warnings[0], "start node 2") {
		t.Errorf("warnings are %q", res.Warnings)
	}
	if s, err := c.Status(t.Context()); err != nil || s.Nodes[1].PID != 0 || s.Nodes[0].PID == 0 || s.Nodes[2].PID == 0 {
		t.Errorf("the nodes are %+v, %v", s, err)
	}
	if err := os.Remove(inTheWay); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(t.Context(), 2); err != nil {
		t.Error(err)
	}
	expect(t, c, "leader follower follower")
}

func TestMountFails(t *testing.T) {
	opts := options(t, "mount-fails")
	c, res := up(t, opts)
	if len(res.Warnings) != 1 || !strings.Contains(res.Warnings[0], "no /dev/fuse") || res.MountStarted {
		t.Errorf("got %+v", res)
	}
	expect(t, c, "leader follower follower")
	t.Setenv(trouble, "")
	if _, res := up(t, opts); !res.MountStarted || len(res.Started) > 0 {
		t.Errorf("the next up did %+v", res)
	}
}

// TestClientFiles: what the nodes are asked with is wrong, and they are not.
func TestClientFiles(t *testing.T) {
	c, _ := up(t, options(t, ""))
	opts := c.opts
	client, err := config.LoadClient(c.ClientConfig())
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{client.TLS.Cert, c.ClientConfig()} {
		whole, err := os.ReadFile(file)
		if err == nil {
			err = os.WriteFile(file, []byte("# nothing"), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		_, _, err = Up(t.Context(), t.Context(), opts)
		if err == nil || !strings.Contains(err.Error(), file) || strings.Contains(err.Error(), "node 1") {
			t.Errorf("with nothing in %s: %v", file, err)
		}
		if err := errors.Join(os.Remove(file), c.Stop(t.Context())); err != nil {
			t.Fatal(err)
		}
		_, _, err = Up(t.Context(), t.Context(), opts)
		if err == nil || !strings.Contains(err.Error(), file) || strings.Contains(err.Error(), "dev up` starts one") {
			t.Errorf("without %s: %v", file, err)
		}
		if took := time.Since(began); took > opts.ReadyTimeout {
			t.Errorf("it took %v to say so", took)
		}
		if err := os.WriteFile(file, whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	up(t, opts)
}

func TestMountPoint(t *testing.T) {
	opts := options(t, "")
	opts.Mount = t.TempDir()
	file := filepath.Join(opts.Mount, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, _, err := Up(t.Context(), t.Context(), opts)
	expectError(t, err, sys.NotEmpty, opts.Mount, "--mount")
	opts.Mount = file
	_, _, err = Up(t.Context(), t.Context(), opts)
	expectError(t, err, sys.NotDir, file)
	opts.Mount = "/proc"
	_, _, err = Up(t.Context(), t.Context(), opts)
	expectError(t, err, sys.Busy, "/proc", "umount")
	opts.Mount = filepath.Join(opts.Dir, "n1", "mnt")
	_, _, err = Up(t.Context(), t.Context(), opts)
	expectError(t, err, sys.Invalid, filepath.Join(opts.Dir, "n1"), "--mount")
	if _, err := Open(opts); !errors.As(err, new(NoClusterError)) {
		t.Errorf("a cluster was made all the same: %v", err)
	}

	opts.Mount = filepath.Join(t.TempDir(), "made", "for", "us")
	c, _ := up(t, opts)
	if c.Mount() != opts.Mount {
		t.Errorf("mounted on %s, want %s", c.Mount(), opts.Mount)
	}
	other := opts
	other.Mount = t.TempDir()
	_, _, err = Up(t.Context(), t.Context(), other)
	expectError(t, err, sys.Busy, opts.Mount, "koinon mount "+other.Mount)
	stop := func(want bool) {
		t.Helper()
		if err := c.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(c.Mount()); (err == nil) != want {
			t.Errorf("%s after stop: %v", c.Mount(), err)
		}
	}
	stop(false) // it was made for us
	for range 2 {
		if c, _ = up(t, other); c.Mount() != other.Mount {
			t.Errorf("mounted on %s, want %s", c.Mount(), other.Mount)
		}
		stop(true) // it is the user's
	}
	c, _ = up(t, opts)
	stop(false)
	c, _ = up(t, opts)
	if err := os.WriteFile(filepath.Join(c.Mount(), "stray"), nil, 0o600); err != nil {
		t.Fatal(err) // the mount of this test is none
	}
	stop(false)
	if kept, err := filepath.Glob(opts.Mount + ".unmounted-*/us/stray"); len(kept) != 1 || err != nil {
		t.Errorf("what was written past the tree is in %q, %v", kept, err)
	}
	up(t, opts)
	stop(false)
}

// Ctrl-C while a node does not answer ends what was started.
func TestInterruptedUp(t *testing.T) {
	opts := options(t, "n1-mute n2-mute n3-mute")
	ctx, cancel := context.WithCancel(t.Context())
	opts.Progress = func(line string) {
		if strings.Contains(line, "waiting for a leader") {
			cancel()
		}
	}
	if _, _, err := Up(ctx, t.Context(), opts); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	c, err := Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, c, "stopped stopped stopped")
}

func TestFrozenNode(t *testing.T) {
	opts := options(t, "")
	c, _ := up(t, opts)
	id, _, err := c.nodes[2].find()
	if err != nil {
		t.Fatal(err)
	}
	if err := id.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	expect(t, c, "leader follower unresponsive")
}

// A node that is about to end, as one that was killed is, is started again. Here it ends when it has been found running.
func TestNodeAboutToEnd(t *testing.T) {
	c, _ := up(t, options(t, ""))
	id, _, err := c.nodes[2].find()
	if err != nil {
		t.Fatal(err)
	}
	if err := id.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	var kill sync.Once
	c.opts.Connect = func(ctx context.Context, client *config.Client) (Prober, error) {
		kill.Do(func() {
			if err := id.Signal(unix.SIGKILL); err != nil {
				t.Error(err)
			}
		})
		return fakeConnect(ctx, client)
	}
	if err := c.Start(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	if now, st, err := c.nodes[2].find(); err != nil || st != running || now == id {
		t.Errorf("another process expected, found %v as before %v, %v, %v", now, id, st, err)
	}
	expect(t, c, "leader follower follower")
}

// A node that does not heed SIGTERM is killed: at once when hurried.
func TestStubbornNode(t *testing.T) {
	opts := options(t, "n2-stubborn")
	c, _ := up(t, opts)
	hurry, cancel := context.WithCancel(t.Context())
	var mu sync.Mutex
	var said []string
	c.opts.Progress = func(line string) {
		mu.Lock()
		defer mu.Unlock()
		said = append(said, line)
		if line == "stopping node 3" {
			cancel()
		}
	}
	if err := c.Stop(hurry); err != nil {
		t.Fatal(err)
	}
	expect(t, c, "stopped stopped stopped")
	if !slices.ContainsFunc(said, func(s string) bool { return strings.HasPrefix(s, "node 2 did not stop by itself") }) {
		t.Errorf("said %q", said)
	}
}

// A PID that another process has now, after a reboot for example, is neither
// taken for a node nor signalled.
func TestRecycledPID(t *testing.T) {
	opts := options(t, "")
	c, _ := up(t, opts)
	if err := c.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	me, err := daemon.Identify(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	me.Start--
	for _, dir := range []string{"n1", "n2", "n3", "mount"} {
		if err := daemon.WritePID(filepath.Join(c.dir, dir, "pid"), me); err != nil {
			t.Fatal(err)
		}
	}
	expect(t, c, "down down down")
	expectError(t, c.Kill(1), sys.Other, "does not run")
	if err := c.Stop(t.Context()); err != nil { // would end this test
		t.Fatal(err)
	}
	expect(t, c, "stopped stopped stopped")
}

func TestNoSuchNode(t *testing.T) {
	opts := options(t, "")
	c, _ := up(t, opts)
	for _, n := range []int{0, -1, 4} {
		expectError(t, c.Kill(n), sys.Other, "3 nodes")
		expectError(t, c.Start(t.Context(), n), sys.Other, "3 nodes")
	}
	expect(t, c, "leader follower follower")
}

// Two terminals at once: one starts the cluster, the other finds it running.
func TestTwoAtOnce(t *testing.T) {
	opts := options(t, "")
	results := make([]*UpResult, 2)
	errs := make([]error, 2)
	var wg sync.WaitGroup
	for i := range results {
		wg.Go(func() { _, results[i], errs[i] = Up(t.Context(), t.Context(), opts) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	if len(results[0].Started)+len(results[1].Started) != 3 || results[0].AlreadyRunning() == results[1].AlreadyRunning() {
		t.Errorf("they did %+v and %+v", results[0], results[1])
	}
}

func TestWatch(t *testing.T) {
	opts := options(t, "")
	c, _ := up(t, opts)
	var seen []string
	err := c.Watch(t.Context(), func(s *Status) {
		if w := words(s); len(seen) == 0 || seen[len(seen)-1] != w {
			seen = append(seen, w)
		}
		var err error
		switch len(seen) {
		case 1:
			expectError(t, c.Watch(t.Context(), nil), sys.Busy, "another terminal")
			err = c.Kill(2)
		case 2:
			err = c.Start(t.Context(), 2)
		case 3:
			err = c.Reset(t.Context())
		}
		if err != nil {
			t.Error(err)
		}
	})
	if !errors.Is(err, ErrStopped) {
		t.Errorf("got %v, want %v", err, ErrStopped)
	}
	if want := []string{"leader follower follower", "leader down follower", "leader follower follower"}; !reflect.DeepEqual(seen, want) {
		t.Errorf("seen %q, want %q", seen, want)
	}
	ctx, cancel := context.WithCancel(t.Context())
	c, _ = up(t, opts)
	if err := c.Watch(ctx, func(*Status) { cancel() }); err != nil {
		t.Errorf("ended by the user: %v", err)
	}
}
