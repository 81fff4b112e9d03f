//go:build linux && !client

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/koinon/koinon/internal/client"
	"github.com/koinon/koinon/internal/config"
	"github.com/koinon/koinon/internal/devcluster"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestMain is the supervisor of a node that a test runs in this process: a node
// starts its own program for that.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == superviseName {
		os.Exit(run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// command runs a command line as a user without any cluster would, outside a
// terminal.
func command(t *testing.T, args ...string) (out, errOut string, code int) {
	t.Helper()
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("XDG_CONFIG_HOME", "")
	t.Setenv("XDG_STATE_HOME", "")
	t.Setenv("KOINON_CONFIG", "")
	var o, e bytes.Buffer
	code = run(t.Context(), args, strings.NewReader(""), &o, &e)
	return o.String(), strings.ReplaceAll(e.String(), home, "HOME"), code
}

// The command tree with its help, as a user reads it. After a change on
// purpose: go test ./cmd/koinon -run TestHelp -update
func TestHelp(t *testing.T) {
	var got strings.Builder
	walk(newRootCommand(&app{}), func(c *cobra.Command) {
		if c.Hidden || !strings.HasPrefix(c.CommandPath()+" ", "koinon ") {
			return
		}
		args := append(strings.Fields(c.CommandPath())[1:], "--help")
		out, errOut, code := command(t, args...)
		if errOut != "" || code != 0 {
			t.Errorf("koinon %s: exit code %d, %s", strings.Join(args, " "), code, errOut)
		}
		fmt.Fprintf(&got, "$ koinon %s\n%s\n", strings.Join(args, " "), out)
	})
	golden := filepath.Join("testdata", "help.golden")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(golden, []byte(got.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got.String() != string(want) {
		t.Errorf("the help is not that of %s: %s", golden, firstDifference(got.String(), string(want)))
	}
}

func firstDifference(got, want string) string {
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range min(len(g), len(w)) {
		if g[i] != w[i] {
			return fmt.Sprintf("line %d is %q, want %q", i+1, g[i], w[i])
		}
	}
	return fmt.Sprintf("it has %d lines, want %d", len(g), len(w))
}

func walk(c *cobra.Command, do func(*cobra.Command)) {
	do(c)
	for _, sub := range c.Commands() {
		walk(sub, do)
	}
}

// Every command says what it does and does it.
func TestCommandsAreWhole(t *testing.T) {
	walk(newRootCommand(&app{}), func(c *cobra.Command) {
		if c.Short == "" || strings.HasSuffix(c.Short, ".") || len(c.Short) > 70 {
			t.Errorf("%s: short help is %q", c.CommandPath(), c.Short)
		}
		if c.RunE == nil {
			t.Errorf("%s: does nothing", c.CommandPath())
		}
		if c.Parent() != nil && c.Parent().Parent() == nil && c.GroupID == "" {
			t.Errorf("%s: stands in no group of the help", c.CommandPath())
		}
	})
}

func TestErrors(t *testing.T) {
	tests := []struct {
		args string
		code int
		want []string
	}{
		{"frobnicate", 2, []string{`unknown command "frobnicate"`, "koinon --help"}},
		{"stauts", 2, []string{`did you mean "stat" or "status"? (see koinon --help)`}},
		{"dev", 0, nil},
		{"dev sart", 2, []string{`unknown command "sart"`, `"start"`, "koinon dev --help"}},
		{"status --frob", 2, []string{"unknown flag: --frob", "koinon status --help"}},
		{"status -o xml", 2, []string{`"xml" is neither table nor json`}},
		{"status extra", 2, []string{`"extra" is too much: the command is koinon status`, "koinon status --help"}},
		{"status", 1, []string{"no cluster is chosen", "--config FILE", "koinon dev up"}},
		{"status --config /no/such.toml", 1, []string{"/no/such.toml does not exist", "koinon dev up"}},
		{"serve", 2, []string{"--config FILE"}},
		{"serve --config /no/such.toml", 1, []string{"/no/such.toml"}},
		{"serve", 2, []string{"--config FILE", "--join HOST:PORT"}},
		{"serve --join 10.0.0.1:7400 --config x", 2, []string{"give one of them"}},
		{"serve --join 10.0.0.1:7400 --token x", 2, []string{"--dir DIR"}},
		{"serve --join 10.0.0.1:7400 --token x --listen :0 --dir /no/such/dir", 1, []string{"no join token", "koinon node token"}},
		{"serve --join 10.0.0.1:7400 --token @/no/such --listen :0 --dir /no/such/dir", 1, []string{"/no/such"}},
		{"init lab", 2, []string{"--dir", "--listen", "koinon init --help"}},
		{"node token rm", 2, []string{"koinon node token rm TOKEN..."}},
		{"node token --expires soon", 2, []string{"--expires"}},
		{"node tokn", 2, []string{"token"}},
		{"dev status", 1, []string{"HOME/.local/state/koinon/dev", "koinon dev up"}},
		{"dev stop --dir /no/such", 1, []string{"/no/such", "`koinon dev up --dir /no/such`"}},
		{"ls --config /no/such.toml", 1, []string{"koinon: /no/such.toml does not exist: give the client.toml of a cluster"}},
		{"dev kill", 2, []string{"an argument is missing: the command is koinon dev kill N..., for example: koinon dev kill 2 (see koinon dev kill --help)"}},
		{"dev kill two", 2, []string{`"two"`, "koinon dev status"}},
		{"dev up --nodes 0x", 2, []string{`--nodes is "0x": give a number`}},
		{"dev up --nodes 50", 2, []string{"--nodes is 50", "1 to 9", "dev up --help"}},
		{"dev up --nodes 0", 2, []string{"--nodes is 0", "1 to 9"}},
		{"dev up --nodes -3", 2, []string{"--nodes is -3", "1 to 9"}},
		{"dev reset", 1, []string{"koinon dev up"}},
	}
	for _, test := range tests {
		t.Run(test.args, func(t *testing.T) {
			_, errOut, code := command(t, strings.Fields(test.args)...)
			if code != test.code {
				t.Errorf("exit code is %d, want %d", code, test.code)
			}
			for _, want := range test.want {
				if !strings.Contains(errOut, want) {
					t.Errorf("%q does not hold %q", errOut, want)
				}
			}
			if n := strings.Count(errOut, "koinon: "); n != min(code, 1) {
				t.Errorf("said %d times: %q", n, errOut)
			}
		})
	}
}

// Every command whose arguments are missing says how it is called, with an
// example, in words of our own.
func TestArgumentsMissing(t *testing.T) {
	asked := 0
	walk(newRootCommand(&app{}), func(c *cobra.Command) {
		if c.Args == nil {
			return
		}
		for _, args := range [][]string{nil, {"a", "b", "c", "d"}} {
			err := c.Args(c, args)
			if err == nil {
				continue
			}
			asked++
			text := err.Error()
			if !strings.Contains(text, "--help") || strings.Contains(text, "arg(s)") {
				t.Errorf("%s %q: %s", c.CommandPath(), args, text)
			}
			if args == nil && (c.Example == "" || !strings.Contains(text, "koinon")) {
				t.Errorf("%s needs arguments and shows no example: %s", c.CommandPath(), text)
			}
		}
	})
	if asked < 30 {
		t.Errorf("only %d complaints: the test looks past the commands", asked)
	}
}

// Builds can be told apart: by what make tells the linker, else by what the
// toolchain recorded.
func TestVersionOf(t *testing.T) {
	installed := &debug.BuildInfo{GoVersion: "go1.26", Main: debug.Module{Version: "v1.2.3"}}
	built := &debug.BuildInfo{GoVersion: "go1.26", Main: debug.Module{Version: "(devel)"},
		Settings: []debug.BuildSetting{{Key: "vcs.revision", Value: "0123456789abcdef"}}}
	for _, tc := range []struct {
		info *debug.BuildInfo
		want string
	}{
		{installed, "v1.2.3 go1.26"},
		{built, "devel-0123456789ab go1.26"},
		{&debug.BuildInfo{GoVersion: "go1.26"}, "devel go1.26"},
	} {
		if got := versionOf(tc.info); got != tc.want {
			t.Errorf("got %q, want %q", got, tc.want)
		}
	}
	defer func(was string) { stamped = was }(stamped)
	stamped = "v1.2.3-4-gabcdef-dirty"
	if got, want := version(), stamped+" "+runtime.Version(); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	// What the Makefile tells the linker must be the name of a variable here: a
	// name that is not there is ignored without a word.
	raw, err := os.ReadFile("../../Makefile")
	if err != nil || !strings.Contains(string(raw), "-X main.stamped=$(VERSION)") {
		t.Errorf("the Makefile does not stamp main.stamped: %v", err)
	}
}

// Node ls shows which version each node runs, and what is wrong with it.
func TestNodesOutput(t *testing.T) {
	nodes := []client.NodeStatus{
		{ID: 1, Addr: "a:1", State: "up", Role: "follower", Version: "v9-dirty go1.26", Trouble: "it does not vote"},
		{Addr: "a:2", State: "down"},
	}
	var out bytes.Buffer
	a := &app{out: &out}
	if err := a.print(nodes, func(w io.Writer) { writeNodes(w, nodes, true); writeNotes(w, nodes) }); err != nil {
		t.Fatal(err)
	}
	const want = `NODE  ADDRESS  STATE  ROLE      LAG  BLOCKS  USED  FREE  MEMORY  JOINED  VERSION
n1    a:1      up     follower  0    0       0 B   0 B   0 B     -       v9-dirty go1.26
-     a:2      down   -         -    -       -     -     -       -       -

n1: it does not vote
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
}

// A signal that is sent twice at once, as timeout(1) does, does not kill a
// process that ends in order: here, that of the test.
func TestSignalTwice(t *testing.T) {
	ctx, release := untilSignal(t.Context(), time.Hour)
	defer release()
	for range 2 {
		if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		<-ctx.Done()
		time.Sleep(100 * time.Millisecond) // in which the signal's effect must not come back
	}
}

// The exit code of a command that was stopped names the signal, as a shell's does.
func TestStoppedBySignal(t *testing.T) {
	for sig, want := range map[syscall.Signal]int{syscall.SIGINT: 130, syscall.SIGTERM: 143} {
		ctx, release := untilSignal(t.Context(), time.Hour)
		if err := syscall.Kill(os.Getpid(), sig); err != nil {
			t.Fatal(err)
		}
		<-ctx.Done()
		var errOut bytes.Buffer
		a := &app{out: &result{Writer: io.Discard}, err: &errOut}
		if code := a.exitCodeOf(ctx, fmt.Errorf("looking: %w", context.Cause(ctx))); code != want || errOut.Len() > 0 {
			t.Errorf("%v: exit code %d, %q", sig, code, errOut.String())
		}
		release()
	}
	a := &app{out: &result{Writer: io.Discard}}
	if code := a.exitCodeOf(t.Context(), context.Canceled); code != 130 {
		t.Errorf("without a signal: exit code %d", code)
	}
}

// Whoever asks about what there is not is told so, and does not get the help of something else.
func TestHelpOfNothing(t *testing.T) {
	words := strings.Fields
	for _, tc := range []struct {
		args []string
		want string // in the error; empty: the help is printed
	}{
		{words("help nosuch"), `unknown command "nosuch"`},
		{words("nosuch --help"), `unknown command "nosuch"`},
		{words("help dev stat"), `unknown command "stat": did you mean "start" or "status"`},
		{words("dev nosuch --help"), `unknown command "nosuch" (see koinon dev --help)`},
		{words("kv nosuch -h"), `unknown command "nosuch" (see koinon kv --help)`},
		{words("completion nosuch"), `unknown command "nosuch"`},
		{words("-- serve"), `"--" is in front of the command "serve": leave it out`},
		{[]string{""}, "the name of the command is empty (see koinon --help)"},
		{[]string{"dev", ""}, "the name of the command is empty (see koinon dev --help)"},
		{words("help"), ""},
		{words("--help"), ""},
		{words("help dev"), ""},
		{words("help run nosuch"), ""},
		{words("run --help nosuch"), ""},
		{words("kv get --help"), ""},
		{words("ls nosuch --help"), ""},
		{words("completion --help"), ""},
		{words("help completion"), ""},
		{words("dev -o json --help"), ""},
	} {
		out, errOut, code := command(t, tc.args...)
		switch {
		case tc.want == "" && (code != 0 || errOut != "" || !strings.Contains(out, "Usage:")):
			t.Errorf("%q: %d, %q, %q", tc.args, code, errOut, out)
		case tc.want != "" && (code != 2 || out != "" || !strings.Contains(errOut, tc.want)):
			t.Errorf("%q: %d, %q, %q; expected %q", tc.args, code, errOut, out, tc.want)
		}
	}
}

func TestVersion(t *testing.T) {
	out, errOut, code := command(t, "--version")
	if !strings.HasPrefix(out, "koinon ") || strings.Count(out, "\n") != 1 || errOut != "" || code != 0 {
		t.Errorf("got %q, %q, %d", out, errOut, code)
	}
	if same, errOut, code := command(t, "version"); same != out || errOut != "" || code != 0 {
		t.Errorf("koinon version: got %q, %q, %d", same, errOut, code)
	}
	text, _, code := command(t, "version", "-o", "json")
	var r versionReport
	if err := json.Unmarshal([]byte(text), &r); err != nil || code != 0 || out != "koinon version "+r.Version+" "+r.Go+"\n" || r.OS != runtime.GOOS || r.Arch != runtime.GOARCH {
		t.Errorf("koinon version -o json: got %q, %d, %v", text, code, err)
	}
}

func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if out, errOut, code := command(t, "completion", shell); !strings.Contains(out, "koinon") || code != 0 {
			t.Errorf("%s: %d bytes, %q, %d", shell, len(out), errOut, code)
		}
	}
	if out, _, _ := command(t, "__complete", "run", "--n"); !strings.Contains(out, "--near\ton nodes that hold the bytes of PATH, where they have room\n") {
		t.Errorf("--n completes to %q", out)
	}
	if out, _, _ := command(t, "__complete", "status", "-o", ""); !strings.Contains(out, "table\njson\n") {
		t.Errorf("-o completes to %q", out)
	}
}

func TestDevStatusOutput(t *testing.T) {
	s := &devcluster.Status{Cluster: "dev-1", Directory: "/d", Mount: "/d/mnt", Nodes: []devcluster.NodeStatus{
		{Number: 1, ID: 1, PID: 77, Address: "127.0.0.1:17001", Directory: "/d/n1", Role: devcluster.RoleLeader, State: devcluster.StateUp},
		{Number: 2, ID: 2, Address: "127.0.0.1:17002", Directory: "/d/n2", State: devcluster.StateDown},
		{Number: 3, ID: 3, PID: 79, Address: "127.0.0.1:17003", Directory: "/d/n3", Role: devcluster.RoleFollower, State: devcluster.StateUp, Trouble: "it does not vote"},
	}}
	var out bytes.Buffer
	a := &app{out: &out}
	show := func() string {
		t.Helper()
		out.Reset()
		if err := a.print(s, func(w io.Writer) { (&devCommand{a}).writeDevStatus(w, s) }); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	const table = `cluster    dev-1
directory  /d
mount      /d/mnt (not mounted)

NODE  STATE  ROLE      PID  ADDRESS          DIRECTORY
1     up     leader    77   127.0.0.1:17001  /d/n1
2     down   -         -    127.0.0.1:17002  /d/n2
3     up     follower  79   127.0.0.1:17003  /d/n3

node 3: it does not vote
`
	if got := show(); got != table {
		t.Errorf("got\n%s\nwant\n%s", got, table)
	}
	if err := a.output.Set("json"); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Cluster, Mount string
		Nodes          []map[string]any
	}
	if err := json.Unmarshal([]byte(show()), &got); err != nil {
		t.Fatal(err)
	}
	if got.Cluster != "dev-1" || got.Mount != "/d/mnt" || len(got.Nodes) != 3 || got.Nodes[2]["trouble"] != "it does not vote" || got.Nodes[0]["role"] != "leader" || got.Nodes[1]["pid"] != 0.0 {
		t.Errorf("got %+v", got)
	}
}

// Outside a terminal the watch prints a line for each change, no more.
func TestWatchLine(t *testing.T) {
	var out bytes.Buffer
	l := newWatchLine(&app{out: &out})
	up := &devcluster.Status{Mounted: true, Nodes: []devcluster.NodeStatus{{Number: 1, State: devcluster.StateUp, Role: devcluster.RoleLeader}}}
	down := &devcluster.Status{Nodes: []devcluster.NodeStatus{{Number: 1, State: devcluster.StateDown}}}
	sick := &devcluster.Status{Nodes: []devcluster.NodeStatus{{Number: 1, State: devcluster.StateUp, Role: devcluster.RoleFollower, Trouble: "it does not vote"}}}
	for _, s := range []*devcluster.Status{up, up, down, down, sick} {
		l.show(s)
	}
	l.end()
	const want = "node 1 leader  |  mounted\nnode 1 down  |  mount down\nnode 1 follower in trouble  |  mount down\n"
	if got := out.String(); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	for n, want := range map[int]string{3: "ab…", 4: "abcd", 9: "abcd"} {
		if got := fit("abcd", n); got != want {
			t.Errorf("in %d: %q, want %q", n, got, want)
		}
	}
}

func TestByteSize(t *testing.T) {
	for n, want := range map[uint64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 1<<20 - 1: "1.0 MiB", 1 << 30: "1.0 GiB", 1<<64 - 1: "16.0 EiB"} {
		if got := byteSize(n); got != want {
			t.Errorf("%d is %q, want %q", n, got, want)
		}
	}
}

// Who listens at an address of its own is reached there; any interface says
// nothing about that.
func TestServeListen(t *testing.T) {
	for listen, want := range map[string]string{"10.0.0.9:7400": "10.0.0.9:7400", "host:1": "host:1", "0.0.0.0:9": "10.0.0.2:7400", "[::]:9": "10.0.0.2:7400", ":9": "10.0.0.2:7400"} {
		n := &config.Node{ID: 2, Voters: []config.Voter{{ID: 1, Addr: "10.0.0.1:7400"}, {ID: 2, Addr: "10.0.0.2:7400"}}}
		if err := (serveFlags{listen: listen}).override(n); err != nil {
			t.Fatal(err)
		}
		if n.Listen != listen || n.Voters[1].Addr != want || n.Voters[0].Addr != "10.0.0.1:7400" {
			t.Errorf("%s: %+v", listen, n)
		}
	}
}
