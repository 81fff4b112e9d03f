//go:build linux

package test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// dev is a cluster brought up by `koinon dev up`.
type dev struct {
	t     *testing.T
	dir   string
	mount string
	nodes int
}

type devNode struct {
	Number    int    `json:"number"`
	ID        uint64 `json:"id"`
	PID       int    `json:"pid"`
	Address   string `json:"address"`
	Directory string `json:"directory"`
	Role      string `json:"role"`
	State     string `json:"state"`
}

type devStatus struct {
	Mount   string    `json:"mount"`
	Cluster string    `json:"cluster"`
	Nodes   []devNode `json:"nodes"`
}

// koinonBinary is the built koinon. `make system` builds it first.
func koinonBinary(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs("../bin/koinon")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v: run `make build` first", err)
	}
	return path
}

// up brings a cluster up and takes it down when the test ends, also after a
// panic or a failure.
func up(t *testing.T, nodes int, extra ...string) *dev {
	t.Helper()
	dir, err := os.MkdirTemp("", "koinon-test-")
	if err != nil {
		t.Fatal(err)
	}
	d := &dev{t: t, dir: filepath.Join(dir, "cluster"), mount: filepath.Join(dir, "mnt"), nodes: nodes}
	if err := os.Mkdir(d.mount, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			d.logs()
		}
		out, err := d.try("dev", "stop", "--dir", d.dir)
		if err != nil {
			t.Errorf("dev stop: %v\n%s", err, out)
		}
		if mounted(d.mount) {
			t.Errorf("%s is still mounted after dev stop", d.mount)
			if err := syscall.Unmount(d.mount, syscall.MNT_DETACH); err != nil {
				t.Errorf("unmount: %v", err)
			}
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("removing the cluster: %v", err)
		}
	})
	d.start(extra...)
	return d
}

// start runs `dev up`, for the first time or again.
func (d *dev) start(extra ...string) {
	d.t.Helper()
	d.koinon(append([]string{"dev", "up", "--detach", "--nodes", fmt.Sprint(d.nodes), "--dir", d.dir, "--mount", d.mount}, extra...)...)
	if !mounted(d.mount) {
		d.t.Fatalf("dev up has returned and %s is not mounted", d.mount)
	}
}

func mounted(dir string) bool {
	raw, err := os.ReadFile("/proc/self/mounts")
	return err == nil && strings.Contains(string(raw), " "+dir+" fuse")
}

func (d *dev) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, koinonBinary(d.t), args...)
	cmd.Env = append(os.Environ(), "KOINON_CONFIG="+filepath.Join(d.dir, "client.toml"), "XDG_CONFIG_HOME="+filepath.Dir(d.dir))
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// koinon runs the binary against this cluster and returns what it printed.
func (d *dev) koinon(args ...string) string {
	d.t.Helper()
	out, err := d.try(args...)
	if err != nil {
		d.t.Fatalf("koinon %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (d *dev) status() devStatus {
	d.t.Helper()
	var s devStatus
	out := d.koinon("dev", "status", "--dir", d.dir, "-o", "json")
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		d.t.Fatalf("dev status: %v\n%s", err, out)
	}
	return s
}

// leader returns the number of the node that leads, waiting until there is one.
func (d *dev) leader() int {
	d.t.Helper()
	var s devStatus
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		s = d.status()
		for _, n := range s.Nodes {
			if n.Role == "leader" {
				return n.Number
			}
		}
	}
	d.t.Fatalf("no leader within 20 s: %+v", s)
	return 0
}

// kill ends a node by SIGKILL.
func (d *dev) kill(number int) {
	d.t.Helper()
	d.koinon("dev", "kill", "--dir", d.dir, fmt.Sprint(number))
}

// restart starts a dead node and waits until it has caught up.
func (d *dev) restart(number int) {
	d.t.Helper()
	d.koinon("dev", "start", "--dir", d.dir, fmt.Sprint(number))
}

func (d *dev) logs() {
	paths, err := filepath.Glob(filepath.Join(d.dir, "*", "*log*"))
	if err != nil {
		d.t.Logf("logs: %v", err)
	}
	for _, p := range paths {
		raw, err := os.ReadFile(p)
		if err != nil {
			continue
		}
		lines := bytes.Split(raw, []byte("\n"))
		d.t.Logf("%s:\n%s", p, bytes.Join(lines[max(0, len(lines)-30):], []byte("\n")))
	}
}

// fsck fails the test unless the tree is sound.
func (d *dev) fsck() {
	d.t.Helper()
	if out, err := d.try("fsck"); err != nil {
		d.t.Fatalf("fsck: %v\n%s", err, out)
	}
}

// sh runs a shell script with the mount as $M and fails the test when it does.
func (d *dev) sh(script string) string {
	d.t.Helper()
	out, err := d.shell(script)
	if err != nil {
		d.t.Fatalf("%s\n%v\n%s", script, err, out)
	}
	return out
}

func (d *dev) shell(script string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", script)
	cmd.Env = append(os.Environ(), "M="+d.mount, "HOME="+filepath.Dir(d.dir), "GIT_CONFIG_NOSYSTEM=1")
	cmd.Dir = filepath.Dir(d.dir)
	out, err := cmd.CombinedOutput()
	return string(out), err
}
