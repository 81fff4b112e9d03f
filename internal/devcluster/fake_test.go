//go:build linux

package devcluster

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/koinon/koinon/internal/config"
	"github.com/koinon/koinon/internal/daemon"
	"github.com/koinon/koinon/internal/sys"
)

// The tests run this test binary in place of koinon: as a node it listens and
// says its name, as a mount it says that it is ready.

// trouble names what the fake processes do wrong: words like "n2-fails".
const trouble = "KOINON_DEVCLUSTER_TEST"

func TestMain(m *testing.M) {
	if _, fake := os.LookupEnv(trouble); !fake || len(os.Args) < 2 {
		os.Exit(m.Run())
	}
	switch os.Args[1] {
	case "serve":
		fakeServe(os.Args[3])
	case "mount":
		fakeMount()
	default:
		os.Exit(m.Run())
	}
}

func hasTrouble(word string) bool {
	return slices.Contains(strings.Fields(os.Getenv(trouble)), word)
}

func fakeServe(path string) {
	name := filepath.Base(filepath.Dir(path))
	cfg, err := config.LoadNode(path)
	if err != nil {
		panic(err)
	}
	if hasTrouble(name + "-fails") {
		fmt.Fprintln(os.Stderr, "the disk of", name, "is made of cheese")
		os.Exit(1)
	}
	if hasTrouble(name + "-stubborn") {
		signal.Ignore(unix.SIGTERM)
	}
	l, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		panic(err)
	}
	for !hasTrouble(name + "-mute") {
		conn, err := l.Accept()
		if err != nil {
			panic(err)
		}
		// The prober sees a failure as no answer.
		_, _ = fmt.Fprintln(conn, uint64(cfg.ID))
		_ = conn.Close()
	}
	forever()
}

// forever waits to be killed. A program that waits for nothing at all is taken
// for a deadlock.
func forever() {
	for {
		time.Sleep(time.Hour)
	}
}

func fakeMount() {
	if hasTrouble("mount-fails") {
		fmt.Fprintln(os.Stderr, "no /dev/fuse")
		os.Exit(1)
	}
	if err := daemon.TellReady(daemon.ReadyFD, "mounted"); err != nil {
		panic(err)
	}
	forever()
}

// fakeProber takes the first node that answers for the leader.
type fakeProber []string

func fakeConnect(_ context.Context, c *config.Client) (Prober, error) {
	return fakeProber(c.Nodes), nil
}

func (p fakeProber) Answers(ctx context.Context) (map[sys.NodeID]Answer, error) {
	answers := make(map[sys.NodeID]Answer)
	role := RoleLeader
	for _, addr := range p {
		conn, err := (&net.Dialer{Timeout: 100 * time.Millisecond}).DialContext(ctx, "tcp", addr)
		if err != nil {
			continue
		}
		var id sys.NodeID
		err = conn.SetDeadline(time.Now().Add(100 * time.Millisecond))
		if err == nil {
			_, err = fmt.Fscan(bufio.NewReader(conn), &id)
		}
		if cerr := conn.Close(); err == nil && cerr == nil {
			answers[id] = Answer{Role: role}
			if hasTrouble(fmt.Sprintf("n%d-damaged", id)) {
				answers[id] = Answer{Role: role, Trouble: "it does not vote"}
			}
			role = RoleFollower
		}
	}
	return answers, nil
}

func (p fakeProber) Close() error { return nil }

// options returns those of a cluster in a new directory, which is stopped
// when the test ends.
func options(t *testing.T, troubles string) Options {
	t.Helper()
	t.Setenv(trouble, troubles)
	t.Setenv("HOME", t.TempDir())
	t.Setenv("XDG_CONFIG_HOME", "")
	opts := Options{
		Dir: filepath.Join(t.TempDir(), "dev"), Binary: os.Args[0], Connect: fakeConnect,
		Progress: func(line string) { t.Log(line) }, ReadyTimeout: 20 * time.Second, Grace: 10 * time.Second,
	}
	t.Cleanup(func() {
		c, err := Open(opts)
		if errors.As(err, new(NoClusterError)) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
		hurry, cancel := context.WithCancel(context.Background())
		cancel()
		if err := c.Stop(hurry); err != nil {
			t.Error(err)
		}
	})
	return opts
}

func up(t *testing.T, opts Options) (*Cluster, *UpResult) {
	t.Helper()
	c, res, err := Up(t.Context(), t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	return c, res
}

func status(t *testing.T, c *Cluster) *Status {
	t.Helper()
	s, err := c.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// words writes the states of the nodes: "leader follower down".
func words(s *Status) string {
	var w []string
	for _, n := range s.Nodes {
		word := string(n.State)
		if n.State == StateUp {
			word = string(n.Role)
		}
		w = append(w, word)
	}
	return strings.Join(w, " ")
}

func expect(t *testing.T, c *Cluster, want string) {
	t.Helper()
	if got := words(status(t, c)); got != want {
		t.Errorf("the nodes are %q, want %q", got, want)
	}
}

func expectError(t *testing.T, err error, kind sys.Kind, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	if !sys.Is(err, kind) {
		t.Errorf("kind of %q is %v, want %v", err, sys.KindOf(err), kind)
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not hold %q", err, part)
		}
	}
}
