package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftwal "github.com/hashicorp/raft-wal"
	"github.com/koinon/koinon/internal/auth"
)

// hashicorpArm is hashicorp/raft with its WAL store, its network transport over
// TLS, and a state in memory. Settings differ from its defaults where that
// makes it faster here: it batches what waits (BatchApplyCh), in batches of
// as many as it allows (MaxAppendEntries).
type hashicorpArm struct {
	raft      *raft.Raft
	transport *raft.NetworkTransport
	store     *countedWAL
}

// countedWAL counts the appends: raft-wal syncs once in each.
type countedWAL struct {
	*raftwal.WAL
	syncs atomic.Uint64
}

func (w *countedWAL) StoreLog(l *raft.Log) error { return w.StoreLogs([]*raft.Log{l}) }

func (w *countedWAL) StoreLogs(ls []*raft.Log) error {
	err := w.WAL.StoreLogs(ls)
	w.syncs.Add(1)
	return err
}

var _ raft.MonotonicLogStore = (*countedWAL)(nil)

// tlsLayer is the raft.StreamLayer over mutual TLS.
type tlsLayer struct {
	net.Listener
	client *tls.Config
}

func (t tlsLayer) Dial(addr raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	return tls.DialWithDialer(&net.Dialer{Timeout: timeout}, "tcp", string(addr), t.client)
}

// hashicorpBatch is the most entries of a batch that raft.ValidateConfig allows.
const hashicorpBatch = 1024

func openHashicorp(s setup, l net.Listener, creds *auth.Credentials, led *ledger) (arm, error) {
	level := hclog.Warn
	if s.Quiet {
		level = hclog.Off
	}
	log := hclog.New(&hclog.LoggerOptions{Level: level, Output: os.Stderr})
	store, err := raftwal.Open(s.Dir, raftwal.WithLogger(log))
	if err != nil {
		return nil, err
	}
	cfg := raft.DefaultConfig()
	cfg.LocalID = raft.ServerID(fmt.Sprint(s.ID))
	cfg.Logger = log
	cfg.BatchApplyCh = true
	cfg.MaxAppendEntries = hashicorpBatch
	a := &hashicorpArm{store: &countedWAL{WAL: store}}
	a.transport = raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{Logger: log, MaxPool: 3, Timeout: 10 * time.Second,
		Stream: tlsLayer{tls.NewListener(l, creds.ServerTLS()), creds.ClientTLS()}})
	snaps := raft.NewInmemSnapshotStore()
	var servers raft.Configuration
	for i, addr := range s.Addrs {
		servers.Servers = append(servers.Servers, raft.Server{ID: raft.ServerID(fmt.Sprint(i + 1)), Address: raft.ServerAddress(addr)})
	}
	if err := raft.BootstrapCluster(cfg, a.store, a.store, snaps, a.transport, servers); err != nil {
		return nil, errors.Join(err, store.Close())
	}
	a.raft, err = raft.NewRaft(cfg, hashicorpState{led}, a.store, a.store, snaps, a.transport)
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	return a, nil
}

// Ready implements arm.
func (a *hashicorpArm) Ready() bool {
	addr, _ := a.raft.LeaderWithID()
	return addr != ""
}

// Leads implements arm.
func (a *hashicorpArm) Leads() bool { return a.raft.State() == raft.Leader }

// Syncs implements arm.
func (a *hashicorpArm) Syncs() uint64 { return a.store.syncs.Load() }

// Client implements arm.
func (a *hashicorpArm) Client(context.Context, string) (func(cmd []byte) error, func() error, error) {
	return func(cmd []byte) error { return a.raft.Apply(cmd, 0).Error() }, func() error { return nil }, nil
}

// Close implements arm.
func (a *hashicorpArm) Close() error {
	return errors.Join(a.raft.Shutdown().Error(), a.transport.Close(), a.store.Close())
}

// hashicorpState is the raft.FSM. It takes batches.
type hashicorpState struct{ led *ledger }

var _ raft.BatchingFSM = hashicorpState{}

func (s hashicorpState) Apply(l *raft.Log) any { return s.led.apply(l.Data) }

func (s hashicorpState) ApplyBatch(ls []*raft.Log) []any {
	out := make([]any, len(ls))
	for i, l := range ls {
		if l.Type == raft.LogCommand {
			out[i] = s.led.apply(l.Data)
		}
	}
	return out
}

var errNoSnapshots = errors.New("no snapshot is taken within the seconds of a benchmark")

func (s hashicorpState) Snapshot() (raft.FSMSnapshot, error) { return nil, errNoSnapshots }

func (s hashicorpState) Restore(io.ReadCloser) error { return errNoSnapshots }
