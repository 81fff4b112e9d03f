//go:build etcdserver

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// hasServers says that this program can measure etcdServers.
const hasServers = true

// servers are three processes of etcd.
type servers struct {
	procs   []*exec.Cmd
	clients []string // where clients reach them
}

// startServers starts etcdServers in a directory.
func startServers(dir string) (_ replicated, err error) {
	program, err := exec.LookPath("etcd")
	if err != nil {
		return nil, fmt.Errorf("%w: install etcd-server, or leave the arm out", err)
	}
	s := &servers{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.kill())
		}
	}()
	var peers, members []string
	for i := range 2 * replicas {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		addr := "http://" + l.Addr().String()
		if err := l.Close(); err != nil {
			return nil, err
		}
		if i < replicas {
			peers, members = append(peers, addr), append(members, fmt.Sprintf("m%d=%s", i, addr))
		} else {
			s.clients = append(s.clients, addr)
		}
	}
	for i := range replicas {
		log, err := os.Create(filepath.Join(dir, fmt.Sprintf("m%d.log", i)))
		if err != nil {
			return nil, err
		}
		p := exec.Command(program, "--name", fmt.Sprintf("m%d", i), "--data-dir", filepath.Join(dir, fmt.Sprintf("m%d", i)),
			"--listen-peer-urls", peers[i], "--initial-advertise-peer-urls", peers[i],
			"--listen-client-urls", s.clients[i], "--advertise-client-urls", s.clients[i],
			"--initial-cluster", strings.Join(members, ","), "--initial-cluster-state", "new")
		p.Stdout, p.Stderr = log, log
		if err := errors.Join(p.Start(), log.Close()); err != nil {
			return nil, err
		}
		s.procs = append(s.procs, p)
	}
	_, err = s.leader()
	return s, err
}

// dial returns a client of one server.
func dial(addr string) (*clientv3.Client, error) {
	return clientv3.New(clientv3.Config{Endpoints: []string{addr}, DialTimeout: startWait, Logger: zap.NewNop()})
}

// leader waits until one leads and returns where clients reach it.
func (s *servers) leader() (string, error) {
	for begun := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		var last error
		for _, addr := range s.clients {
			c, err := dial(addr)
			if err != nil {
				return "", err
			}
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			st, err := c.Status(ctx, addr)
			cancel()
			if last = errors.Join(err, c.Close()); err == nil && st.Leader == st.Header.MemberId {
				return addr, nil
			}
		}
		if time.Since(begun) > startWait {
			return "", fmt.Errorf("etcd has no leader after %v: %w", startWait, last)
		}
	}
}

// driver implements replicated.
func (s *servers) driver(b *bench, _ string, depth int) (func(time.Duration) (load, error), func() error, error) {
	addr, err := s.leader()
	if err != nil {
		return nil, nil, err
	}
	c, err := dial(addr)
	if err != nil {
		return nil, nil, err
	}
	put := func(cmd []byte) error {
		_, err := c.Put(context.Background(), strconv.FormatUint(keyOf(cmd), 16), string(cmd))
		return err
	}
	return func(d time.Duration) (load, error) { return drive(depth, b.opts.bytes, d, put) }, c.Close, nil
}

// states implements replicated, by what the servers tell of themselves.
func (s *servers) states() ([]status, error) {
	var out []status
	for _, addr := range s.clients {
		m, err := metricsOf(addr)
		if err != nil {
			return nil, err
		}
		out = append(out, status{Applied: uint64(m["etcd_debugging_mvcc_put_total"]), Syncs: uint64(m["etcd_disk_wal_fsync_duration_seconds_count"]),
			CPU: time.Duration(m["process_cpu_seconds_total"] * 1e9), Allocated: uint64(m["go_memstats_alloc_bytes_total"])})
	}
	return out, nil
}

// metricsOf reads the metrics without labels of a server.
func metricsOf(addr string) (map[string]float64, error) {
	r, err := http.Get(addr + "/metrics")
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Body.Close() }() // it was only read
	out := make(map[string]float64)
	lines := bufio.NewScanner(r.Body)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		if v, err := strconv.ParseFloat(value, 64); err == nil {
			out[name] = v
		}
	}
	return out, lines.Err()
}

// agree implements replicated: all servers have the same hash of all keys and
// revisions.
func (s *servers) agree(acked, lost uint64) (status, error) {
	for begun := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		st, err := s.states()
		if err != nil {
			return status{}, err
		}
		same := true
		for i, addr := range s.clients {
			c, err := dial(addr)
			if err != nil {
				return status{}, err
			}
			ctx, cancel := context.WithTimeout(context.Background(), startWait)
			h, err := c.HashKV(ctx, addr, 0)
			cancel()
			if err = errors.Join(err, c.Close()); err != nil {
				return status{}, err
			}
			st[i].Digest = uint64(h.Hash)
			same = same && st[i].Digest == st[0].Digest && st[i].Applied == st[0].Applied
		}
		n := st[0].Applied
		switch {
		case same && n >= acked && n <= acked+lost:
			return st[0], nil
		case time.Since(begun) > startWait:
			return st[0], fmt.Errorf("etcd: %d puts were acknowledged and %d failed, found %+v", acked, lost, st)
		}
	}
}

func (s *servers) end(sig syscall.Signal) error {
	var errs []error
	for _, p := range s.procs {
		if err := p.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
			errs = append(errs, err)
		}
	}
	for _, p := range s.procs {
		_ = p.Wait() // it was told to end, and says by what
	}
	s.procs = nil
	return errors.Join(errs...)
}

func (s *servers) stop() error { return s.end(syscall.SIGTERM) }

func (s *servers) kill() error { return s.end(syscall.SIGKILL) }
