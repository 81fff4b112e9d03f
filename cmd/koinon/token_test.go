//go:build linux && !client

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/koinon/koinon/internal/ports"
)

// outpost is a machine's output while a command runs on it.
type outpost struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *outpost) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(b)
}

func (o *outpost) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// serveUntilEnd runs `koinon serve ARGS` until the test ends.
func serveUntilEnd(t *testing.T, in string, args ...string) *outpost {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	out := &outpost{}
	done := make(chan int, 1)
	go func() { done <- run(ctx, append([]string{"serve"}, args...), strings.NewReader(in), out, out) }()
	t.Cleanup(func() {
		cancel()
		if code := <-done; code != 0 || t.Failed() {
			t.Errorf("koinon serve %v: exit code %d\n%s", args, code, out)
		}
	})
	return out
}

func freeAddress(t *testing.T) string {
	t.Helper()
	free, err := ports.Free(1)
	if err != nil {
		t.Fatal(err)
	}
	return ports.Loopback(free[0])
}

// TestGrowByCommands goes through docs/operating/grow.md: a cluster of one
// machine, and two that join it with tokens.
func TestGrowByCommands(t *testing.T) {
	dir := t.TempDir()
	at := func(parts ...string) string { return filepath.Join(append([]string{dir}, parts...)...) }
	seed := freeAddress(t)
	if _, errOut, code := command(t, "init", "lab", "--dir", at("n1"), "--listen", seed); code != 0 || !strings.Contains(errOut, "koinon serve --config "+at("n1", "node.toml")) {
		t.Fatalf("init: %d, %s", code, errOut)
	}
	serveUntilEnd(t, "", "--config", at("n1", "node.toml"))
	admin := func(args ...string) (string, string) {
		t.Helper()
		out, errOut, code := command(t, append([]string{"--config", at("n1", "client.toml")}, args...)...)
		if code != 0 {
			t.Fatalf("koinon %v: %d, %s", args, code, errOut)
		}
		return out, errOut
	}
	token, advice := admin("node", "token", "--expires", "10m", "--zone", "rack-b")
	if strings.Count(token, "\n") != 1 || !strings.HasPrefix(token, "koinon1.lab.") || !strings.Contains(advice, "koinon serve --join "+seed) {
		t.Errorf("standard output has %q, standard error %q", token, advice)
	}
	if err := os.WriteFile(at("token"), []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	serveUntilEnd(t, "", "--join", seed, "--token", "@"+at("token"), "--dir", at("n2"), "--listen", freeAddress(t))
	awaitTable(t, func() string { out, _ := admin("node", "token", "ls"); return out }, "used n2")
	out, _ := admin("node", "token", "-o", "json")
	var made struct{ Token, ID, Seed string }
	if err := json.Unmarshal([]byte(out), &made); err != nil || made.Seed != seed {
		t.Fatalf("%v: %s", err, out)
	}
	serveUntilEnd(t, made.Token+"\n", "--join", seed, "--token", "-", "--dir", at("n3"), "--listen", freeAddress(t))
	awaitTable(t, func() string { out, _ := admin("node", "ls"); return out }, "n2 joining", "n3 joining", "n1 up")
	awaitTable(t, func() string { out, _ := admin("node", "token", "ls"); return out }, made.ID+" used n3", "client admin", "rack-b")
	spare, _ := admin("node", "token")
	admin("node", "token", "rm", strings.Split(spare, ".")[2])
	if _, errOut, code := command(t, "serve", "--join", seed, "--token", spare, "--dir", at("n4"), "--listen", freeAddress(t)); code != 1 || !strings.Contains(errOut, "knows no token") {
		t.Errorf("a token that was taken back: %d, %s", code, errOut)
	}
}

// awaitTable waits until every one of the wanted runs of words is in a row.
func awaitTable(t *testing.T, show func() string, want ...string) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		table := show()
		missing := ""
		for _, w := range want {
			if !strings.Contains(squeeze(table), w) {
				missing = w
			}
		}
		if missing == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("no %q in\n%s", missing, table)
		}
	}
}

// squeeze joins words by one blank each and leaves addresses out.
func squeeze(table string) string {
	var words []string
	for _, w := range strings.Fields(table) {
		if !strings.HasPrefix(w, "127.0.0.1:") {
			words = append(words, w)
		}
	}
	return strings.Join(words, " ")
}
