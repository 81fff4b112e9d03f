package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/koinon/koinon/internal/auth"
)

// replicas is how many replicas a group has.
const replicas = 3

// group is three replicas of one library, each in a process.
type group struct {
	arm   string
	addrs []string
	procs []*process
}

// process is one replica's process.
type process struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// startWait bounds how long a group may take to have a leader.
const startWait = 30 * time.Second

// startGroup starts three replicas in dir and waits until they can be driven.
func (b *bench) startGroup(armName, dir string) (_ *group, err error) {
	g := &group{arm: armName}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.kill())
		}
	}()
	var listeners []*net.TCPListener
	for range replicas {
		l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			return g, err
		}
		listeners = append(listeners, l)
		g.addrs = append(g.addrs, l.Addr().String())
	}
	for i, l := range listeners {
		s := setup{Arm: armName, ID: i + 1, Addrs: g.addrs, TLS: b.credsDir(i + 1), Dir: filepath.Join(dir, fmt.Sprint(i+1))}
		if err := os.MkdirAll(s.Dir, 0o700); err != nil {
			return g, err
		}
		p, err := b.startProcess(s, l)
		if err != nil {
			return g, err
		}
		g.procs = append(g.procs, p)
	}
	return g, g.awaitReady()
}

func (b *bench) startProcess(s setup, l *net.TCPListener) (*process, error) {
	file, err := l.File()
	if err != nil {
		return nil, err
	}
	args := []string{b.self, "replica"}
	if b.opts.strace {
		args = append([]string{"strace", "-f", "-c", "-e", "trace=fsync,fdatasync", "-o", s.Dir + ".strace"}, args...)
	}
	p := &process{cmd: exec.Command(args[0], args[1:]...)}
	p.cmd.Stderr = os.Stderr
	p.cmd.ExtraFiles = []*os.File{file}
	if b.opts.procs > 0 {
		p.cmd.Env = append(os.Environ(), fmt.Sprintf("GOMAXPROCS=%d", b.opts.procs))
	}
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.out = bufio.NewReader(out)
	if err := errors.Join(p.cmd.Start(), file.Close(), l.Close()); err != nil {
		return nil, err
	}
	return p, json.NewEncoder(p.in).Encode(&s)
}

// ask sends one request and reads its answer.
func (p *process) ask(req request) (reply, error) {
	var r reply
	if err := json.NewEncoder(p.in).Encode(&req); err != nil {
		return r, err
	}
	if err := readLine(p.out, &r); err != nil {
		return r, fmt.Errorf("a replica's process ended: %w", err)
	}
	if r.Err != "" {
		return r, errors.New(r.Err)
	}
	return r, nil
}

// states asks all replicas.
func (g *group) states() ([]status, error) {
	var out []status
	for _, p := range g.procs {
		r, err := p.ask(request{Op: "status"})
		if err != nil {
			return nil, err
		}
		out = append(out, r.Status)
	}
	return out, nil
}

// await asks until done says so.
func (g *group) await(what string, done func([]status) bool) ([]status, error) {
	for begun := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		st, err := g.states()
		if err != nil || done(st) {
			return st, err
		}
		if time.Since(begun) > startWait {
			return nil, fmt.Errorf("%s: waited %v for %s, found %+v", g.arm, startWait, what, st)
		}
	}
}

func (g *group) awaitReady() error {
	_, err := g.await("a leader", func(st []status) bool {
		leaders := 0
		for _, s := range st {
			if !s.Ready {
				return false
			}
			if s.Leads {
				leaders++
			}
		}
		return leaders == 1
	})
	return err
}

// leader returns the leader's process.
func (g *group) leader() (*process, error) {
	st, err := g.await("a leader", func(st []status) bool { return leaderOf(st) >= 0 })
	if err != nil {
		return nil, err
	}
	return g.procs[leaderOf(st)], nil
}

func leaderOf(st []status) int {
	for i, s := range st {
		if s.Leads {
			return i
		}
	}
	return -1
}

// agree waits until all replicas have applied the same commands, and fails
// when their digests differ or it is not what was acknowledged: at least acked
// commands and, as those that failed may have taken effect, at most acked+lost.
func (g *group) agree(acked, lost uint64) (status, error) {
	st, err := g.await("all to apply the same", func(st []status) bool {
		for _, s := range st[1:] {
			if s.Applied != st[0].Applied {
				return false
			}
		}
		return true
	})
	if err != nil {
		return status{}, err
	}
	for i, s := range st {
		if s.Digest != st[0].Digest {
			return s, fmt.Errorf("%s: replica %d has digest %016x after %d commands, replica 1 has %016x", g.arm, i+1, s.Digest, s.Applied, st[0].Digest)
		}
	}
	if n := st[0].Applied; n < acked || n > acked+lost {
		return st[0], fmt.Errorf("%s: %d commands were acknowledged and %d failed, but %d were applied", g.arm, acked, lost, n)
	}
	return st[0], nil
}

// stop ends the replicas in order.
func (g *group) stop() error {
	var errs []error
	for _, p := range g.procs {
		errs = append(errs, json.NewEncoder(p.in).Encode(&request{Op: "stop"}), p.in.Close())
	}
	for _, p := range g.procs {
		errs = append(errs, p.cmd.Wait())
	}
	g.procs = nil
	return errors.Join(errs...)
}

// kill ends what runs after a failure.
func (g *group) kill() error {
	var errs []error
	for _, p := range g.procs {
		if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			errs = append(errs, err)
		}
		_ = p.cmd.Wait() // it was killed, and says so
	}
	g.procs = nil
	return errors.Join(errs...)
}

// straced reads how many syncs strace has counted in the replicas of dir.
func straced(dir string) (uint64, error) {
	var total uint64
	for i := range replicas {
		text, err := os.ReadFile(filepath.Join(dir, fmt.Sprint(i+1)+".strace"))
		if err != nil {
			return 0, err
		}
		for line := range strings.Lines(string(text)) {
			f := strings.Fields(line)
			if len(f) < 5 || f[len(f)-1] != "fsync" && f[len(f)-1] != "fdatasync" {
				continue
			}
			var n uint64
			if _, err := fmt.Sscan(f[3], &n); err != nil {
				return 0, fmt.Errorf("strace wrote %q: %w", line, err)
			}
			total += n
		}
	}
	return total, nil
}

// issue makes the credentials of the replicas and of a client.
func (b *bench) issue() error {
	ca, err := auth.NewCA(clusterName)
	if err != nil {
		return err
	}
	for i := 1; i <= replicas; i++ {
		c, err := ca.IssueNode(nodeID(i), []string{"127.0.0.1"})
		if err == nil {
			err = c.Save(b.credsDir(i), "node")
		}
		if err != nil {
			return err
		}
	}
	b.client, err = ca.IssueClient("bench")
	return err
}

func (b *bench) credsDir(i int) string { return filepath.Join(b.dir, "tls", fmt.Sprint(i)) }
