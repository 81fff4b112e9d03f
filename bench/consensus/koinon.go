package main

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/koinon/koinon/internal/auth"
	"github.com/koinon/koinon/internal/cluster"
	"github.com/koinon/koinon/internal/cluster/clusterpb"
	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/env/envfs"
	"github.com/koinon/koinon/internal/placement"
	"github.com/koinon/koinon/internal/replica"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/wire"
)

// clusterName is what the certificates are issued for.
const clusterName = "bench"

// nsBench is the namespace of the benchmark's commands, nsMemory that of those
// that change nothing but memory, methodDo the client's request.
const (
	nsBench  rsm.Namespace = 9
	nsMemory rsm.Namespace = 10
	methodDo wire.Method   = 900
)

// koinonArm is a node as internal/node makes it, with its defaults and with
// the benchmark's machine in place of the tree.
type koinonArm struct {
	dir       string
	server    *wire.Server
	served    chan error
	transport *replica.WireTransport
	host      *replica.Host
	group     *replica.Group
}

// rowsMachine keeps every command as a row of the replicated state.
type rowsMachine struct{ led *ledger }

func (m rowsMachine) Apply(tx rsm.Tx, _ rsm.Stamp, body []byte) ([]byte, any) {
	tx.Set(binary.BigEndian.AppendUint64(nil, keyOf(body)), append([]byte(nil), body...))
	return binary.LittleEndian.AppendUint64(nil, m.led.note(body)), nil
}

// memoryMachine keeps every command as the peers' states do.
type memoryMachine struct{ led *ledger }

func (m memoryMachine) Apply(_ rsm.Tx, _ rsm.Stamp, body []byte) ([]byte, any) {
	return binary.LittleEndian.AppendUint64(nil, m.led.apply(append([]byte(nil), body...))), nil
}

func openKoinon(s setup, l net.Listener, creds *auth.Credentials, led *ledger) (arm, error) {
	level := slog.LevelWarn
	if s.Quiet {
		level = slog.LevelError
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	var voters []replica.Peer
	for i, addr := range s.Addrs {
		voters = append(voters, replica.Peer{ID: nodeID(i + 1), Addr: addr})
	}
	a := &koinonArm{dir: s.Dir, served: make(chan error, 1)}
	a.server = wire.NewServer(wire.ServerConfig{TLS: creds.ServerTLS(), Logger: log,
		Identify: func(cs tls.ConnectionState) (wire.Identity, error) {
			id, err := auth.PeerIdentity(cs)
			return wire.Identity(id), err
		}})
	a.transport = replica.NewWireTransport(replica.WireConfig{Self: nodeID(s.ID), Server: a.server, Logger: log,
		Client: func(p replica.Peer) wire.ClientConfig {
			return wire.ClientConfig{TLS: creds.ClientTLSFor(p.ID), Logger: log}
		}})
	var err error
	a.host, err = replica.Open(replica.Config{Dir: s.Dir, FS: envfs.Disk, Clock: env.System{}, Cluster: clusterName,
		Self: nodeID(s.ID), Voters: voters, Transport: a.transport, Logger: log},
		map[rsm.Namespace]rsm.Machine{nsBench: rowsMachine{led}, nsMemory: memoryMachine{led}})
	if err != nil {
		return nil, errors.Join(err, a.transport.Close())
	}
	a.group = a.host.Group(0)
	(&cluster.Service{Group: a.group, Status: func() *clusterpb.StatusReply { return &clusterpb.StatusReply{} }}).Register(a.server)
	a.server.Handle(methodDo, a.serveDo)
	go func() { a.served <- a.server.Serve(l) }()
	return a, nil
}

// serveDo runs a client's command.
func (a *koinonArm) serveDo(ctx context.Context, req *wire.Request) (wire.Response, error) {
	if len(req.Header) != headerBytes {
		return wire.Response{}, sys.E(sys.Op("bench.Do"), sys.Invalid, "a header of three numbers is expected")
	}
	result, _, err := a.group.Propose(ctx, rsm.Command{NS: nsBench, Body: req.Payload,
		Session: sys.SessionID(binary.LittleEndian.Uint64(req.Header)),
		Seq:     binary.LittleEndian.Uint64(req.Header[8:]), Ack: binary.LittleEndian.Uint64(req.Header[16:])})
	if err != nil {
		return cluster.LeaderHint(err)
	}
	return wire.Response{Payload: result}, nil
}

// headerBytes is the size of methodDo's header: session, number, acknowledged.
const headerBytes = 24

// Ready implements arm. The log's first segments are filled once in a
// directory's life, which is not what is measured.
func (a *koinonArm) Ready() bool {
	names, err := os.ReadDir(filepath.Join(a.dir, "log"))
	if err != nil || len(names) < 2 || a.group.Status().Leader == 0 {
		return false
	}
	for _, n := range names {
		if strings.HasSuffix(n.Name(), ".tmp") {
			return false
		}
	}
	return true
}

// Leads implements arm.
func (a *koinonArm) Leads() bool { return a.group.Status().Ready }

// Syncs implements arm.
func (a *koinonArm) Syncs() uint64 { return a.group.Status().LogSyncs }

// Client implements arm: in a session, as every client of the product is. The
// arm that has its state in memory does without, as the peers do.
func (a *koinonArm) Client(ctx context.Context, name string) (func(cmd []byte) error, func() error, error) {
	if name == inMemory {
		return func(cmd []byte) error {
			_, _, err := a.group.Propose(ctx, rsm.Command{NS: nsMemory, Body: cmd})
			return err
		}, func() error { return nil }, nil
	}
	session, err := a.group.OpenSession(ctx, "bench")
	if err != nil {
		return nil, nil, err
	}
	var n numbers
	propose := func(cmd []byte) error {
		seq, ack := n.begin()
		defer n.end(seq)
		_, _, err := a.group.Propose(ctx, rsm.Command{Session: session, Seq: seq, Ack: ack, NS: nsBench, Body: cmd})
		return err
	}
	return propose, func() error { return a.group.EndSession(ctx, session) }, nil
}

// Close implements arm.
func (a *koinonArm) Close() error {
	err := errors.Join(a.server.Close(), <-a.served)
	return errors.Join(err, a.host.Close(), a.transport.Close())
}

// numbers gives out a session's sequence numbers.
type numbers struct {
	mu       sync.Mutex
	last, ok uint64 // ok: all up to it are answered
	open     map[uint64]struct{}
}

func (n *numbers) begin() (seq, ack uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.open == nil {
		n.open = map[uint64]struct{}{}
	}
	n.last++
	n.open[n.last] = struct{}{}
	return n.last, n.ok
}

func (n *numbers) end(seq uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.open, seq)
	for n.ok < n.last {
		if _, open := n.open[n.ok+1]; open {
			break
		}
		n.ok++
	}
}

// remote is a client of Koinon in a process of its own.
type remote struct{ c *cluster.Client }

func dialRemote(creds *auth.Credentials, addrs []string) (*remote, error) {
	m := &clusterpb.Map{Cluster: clusterName, Epoch: 1}
	var nodes []placement.Node
	for i, addr := range addrs {
		m.Members = append(m.Members, &clusterpb.Member{Id: uint64(i + 1), Addr: addr})
		nodes = append(nodes, placement.Node{ID: nodeID(i + 1), Weight: 1})
	}
	table, err := placement.Assign(nodes, 1, len(nodes))
	if err != nil {
		return nil, err
	}
	m.Table = table.Marshal()
	c := cluster.New(cluster.Config{Cluster: clusterName, Seeds: addrs, TLS: creds.ClientTLS()})
	return &remote{c}, c.Install(m)
}

// client is what arm.Client is, over the wire.
func (r *remote) client(ctx context.Context) (func(cmd []byte) error, func() error, error) {
	session, err := r.c.OpenSession(ctx, "bench")
	if err != nil {
		return nil, nil, err
	}
	var n numbers
	propose := func(cmd []byte) error {
		seq, ack := n.begin()
		defer n.end(seq)
		header := binary.LittleEndian.AppendUint64(make([]byte, 0, headerBytes), uint64(session))
		header = binary.LittleEndian.AppendUint64(header, seq)
		header = binary.LittleEndian.AppendUint64(header, ack)
		reply, err := r.c.CallLeader(ctx, methodDo, header, cmd)
		if err == nil {
			reply.Release()
		}
		return err
	}
	return propose, func() error { return r.c.CloseSession(ctx, session) }, nil
}
