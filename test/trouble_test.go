//go:build linux

package test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// says fails the test unless text has every one of the words.
func says(t *testing.T, text string, words ...string) {
	t.Helper()
	for _, w := range words {
		if !strings.Contains(text, w) {
			t.Errorf("%q is not said in:\n%s", w, text)
		}
	}
}

// refused runs the binary, which must fail within a bound and say the words.
func (d *dev) refused(within time.Duration, args []string, words ...string) string {
	d.t.Helper()
	began := time.Now()
	out, err := d.try(args...)
	if err == nil {
		d.t.Errorf("koinon %s was not refused:\n%s", strings.Join(args, " "), out)
		return out
	}
	if took := time.Since(began); took > within {
		d.t.Errorf("koinon %s took %v to fail, more than %v", strings.Join(args, " "), took, within)
	}
	says(d.t, out, words...)
	return out
}

// eventually waits until ok holds.
func eventually(t *testing.T, within time.Duration, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(within); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", within, what)
		}
	}
}

// run is a koinon that runs beside the test.
type run struct {
	t     *testing.T
	cmd   *exec.Cmd
	log   string
	ended chan struct{}
	err   error // once ended is closed
}

var runs atomic.Int64

// background starts the binary against this cluster. It is killed when the
// test ends, if it still runs.
func (d *dev) background(args ...string) *run {
	d.t.Helper()
	return d.wrapped(nil, args...)
}

// wrapped is background through another program, as "ip netns exec NAME".
func (d *dev) wrapped(wrapper []string, args ...string) *run {
	d.t.Helper()
	r := &run{t: d.t, ended: make(chan struct{})}
	r.log = filepath.Join(filepath.Dir(d.dir), fmt.Sprintf("run%d.log", runs.Add(1)))
	log, err := os.Create(r.log)
	if err != nil {
		d.t.Fatal(err)
	}
	line := append(append(append([]string{}, wrapper...), koinonBinary(d.t)), args...)
	r.cmd = exec.Command(line[0], line[1:]...)
	r.cmd.Env = append(os.Environ(), "KOINON_CONFIG="+filepath.Join(d.dir, "client.toml"), "XDG_CONFIG_HOME="+filepath.Dir(d.dir))
	r.cmd.Stdout, r.cmd.Stderr = log, log
	if err := r.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	go func() {
		r.err = errors.Join(r.cmd.Wait(), log.Close())
		close(r.ended)
	}()
	d.t.Cleanup(func() {
		select {
		case <-r.ended:
		default:
			if err := r.cmd.Process.Kill(); err != nil {
				d.t.Error(err)
			}
			<-r.ended
		}
		if slices.Contains(args, "mount") { // what was killed stays mounted, dead
			_ = syscall.Unmount(args[len(args)-1], syscall.MNT_DETACH)
		}
		if d.t.Failed() {
			d.t.Logf("%s:\n%s", strings.Join(args, " "), r.said())
		}
	})
	return r
}

func (r *run) said() string {
	raw, err := os.ReadFile(r.log)
	if err != nil {
		r.t.Error(err)
	}
	return string(raw)
}

// await waits until the process has said something.
func (r *run) await(within time.Duration, words string) {
	r.t.Helper()
	eventually(r.t, within, fmt.Sprintf("%q in:\n%s", words, r.log), func() bool { return strings.Contains(r.said(), words) })
}

// end waits for the end of the process and returns what it ended with.
func (r *run) end(within time.Duration) error {
	r.t.Helper()
	select {
	case <-r.ended:
		return r.err
	case <-time.After(within):
		r.t.Fatalf("%v does not end within %v:\n%s", r.cmd.Args, within, r.said())
		return nil
	}
}

func (r *run) signal(sig syscall.Signal) {
	r.t.Helper()
	if err := r.cmd.Process.Signal(sig); err != nil {
		r.t.Fatal(err)
	}
}

// processes lists the processes that have the cluster's directory in their
// command line.
func (d *dev) processes() []string {
	d.t.Helper()
	paths, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		d.t.Fatal(err)
	}
	var found []string
	for _, p := range paths {
		raw, err := os.ReadFile(p)
		if err != nil {
			continue // it has ended since
		}
		line := string(bytes.ReplaceAll(raw, []byte{0}, []byte(" ")))
		if strings.Contains(line, filepath.Dir(d.dir)+"/") {
			found = append(found, filepath.Base(filepath.Dir(p))+": "+line)
		}
	}
	return found
}

// nothingLeft waits until no process and no mount of the cluster is left.
func (d *dev) nothingLeft() {
	d.t.Helper()
	var left []string
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		left = d.processes()
		raw, err := os.ReadFile("/proc/self/mounts")
		if err != nil {
			d.t.Fatal(err)
		}
		for line := range strings.Lines(string(raw)) {
			if strings.Contains(line, " "+filepath.Dir(d.dir)+"/") {
				left = append(left, line)
			}
		}
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			d.t.Fatalf("left behind:\n%s", strings.Join(left, "\n"))
		}
	}
}

// at is a path in the cluster's directory.
func (d *dev) at(parts ...string) string {
	return filepath.Join(append([]string{d.dir}, parts...)...)
}

// besides is a path beside the cluster's directory.
func (d *dev) besides(name string) string { return filepath.Join(filepath.Dir(d.dir), name) }

// stop stops the cluster.
func (d *dev) stop() {
	d.t.Helper()
	d.koinon("dev", "stop", "--dir", d.dir)
}

// edit changes a file.
func edit(t *testing.T, path string, change func(string) string) {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(change(string(raw))), 0o600); err != nil {
		t.Fatal(err)
	}
}

// timeout sets how long clients wait for a majority.
func (d *dev) timeout(value string) {
	d.t.Helper()
	edit(d.t, d.at("client.toml"), func(s string) string {
		s = regexp.MustCompile(`(?m)^timeout = .*\n`).ReplaceAllString(s, "")
		return replaceOnce(d.t, s, "\n[tls]", "\ntimeout = \""+value+"\"\n[tls]")
	})
}

// fingerprint tells whether anything in a directory has changed.
func fingerprint(t *testing.T, dir string) string {
	t.Helper()
	sum := sha256.New()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		// The socket of the supervisor of processes goes when that ends, a while after the node.
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		raw, err := os.ReadFile(path)
		fmt.Fprintf(sum, "%s %d\n", path, len(raw))
		sum.Write(raw)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sum.Sum(nil))
}

type nodeTrouble struct {
	ID      uint64 `json:"id"`
	State   string `json:"state"`
	Role    string `json:"role"`
	Trouble string `json:"trouble"`
	Round   uint64 `json:"round"`
	Lag     uint64 `json:"lag"`
	Applied uint64 `json:"applied"`
}

// clusterStatus is `koinon status`, also without a majority.
func (d *dev) clusterStatus() map[uint64]nodeTrouble {
	d.t.Helper()
	var s struct {
		Nodes []nodeTrouble `json:"nodes"`
	}
	out, _ := d.try("status", "-o", "json") // exit code 1 says that there is no majority
	if err := json.NewDecoder(strings.NewReader(out)).Decode(&s); err != nil {
		d.t.Fatalf("%v\n%s", err, out)
	}
	nodes := map[uint64]nodeTrouble{}
	for _, n := range s.Nodes {
		nodes[n.ID] = n
	}
	return nodes
}

// node returns a node as dev status tells of it.
func (d *dev) node(number int) devNode {
	d.t.Helper()
	return d.status().Nodes[number-1]
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func holds(t *testing.T, path, text string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != text {
		t.Fatalf("%s holds %d bytes that are not the %d written", path, len(got), len(text))
	}
}

func replaceOnce(t *testing.T, s, old, new string) string {
	t.Helper()
	if strings.Count(s, old) != 1 {
		t.Fatalf("%q is not once in:\n%s", old, s)
	}
	return strings.Replace(s, old, new, 1)
}

func itoa(n int) string { return strconv.Itoa(n) }
