package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/koinon/koinon/internal/auth"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// etcdArm is go.etcd.io/raft/v3 driven as its documentation says: a loop over
// Ready that saves, sends, applies and advances. The leader sends before it
// saves, followers after; messages are encoded in the loop, as it asks.
type etcdArm struct {
	id      uint64
	node    raft.Node
	storage *raft.MemoryStorage
	log     *ringLog
	led     *ledger
	links   map[uint64]*etcdLink
	listen  net.Listener
	leader  atomic.Uint64
	cancel  context.CancelFunc
	wg      sync.WaitGroup

	confState *raftpb.ConfState
	compacted uint64

	mu      sync.Mutex
	next    uint64
	waiting map[uint64]chan struct{}
	failed  error
}

const (
	etcdTick = 10 * time.Millisecond
	// etcdHeartbeat and etcdElection are in ticks: 100 ms and 1 s, etcd's own.
	etcdHeartbeat, etcdElection = 10, 100
	// etcdKept is how many entries stay in memory behind the applied ones.
	etcdKept = 10_000
)

func openEtcd(s setup, l net.Listener, creds *auth.Credentials, led *ledger) (arm, error) {
	ring, err := openRing(filepath.Join(s.Dir, "log"))
	if err != nil {
		return nil, err
	}
	a := &etcdArm{id: uint64(s.ID), storage: raft.NewMemoryStorage(), log: ring, led: led, links: map[uint64]*etcdLink{},
		listen: tls.NewListener(l, creds.ServerTLS()), waiting: map[uint64]chan struct{}{}}
	var peers []raft.Peer
	for i := range s.Addrs {
		peers = append(peers, raft.Peer{ID: uint64(i + 1)})
	}
	cfg := &raft.Config{ID: a.id, ElectionTick: etcdElection, HeartbeatTick: etcdHeartbeat, Storage: a.storage,
		MaxSizePerMsg: 1 << 20, MaxInflightMsgs: 512, CheckQuorum: true, PreVote: true, Logger: quietLogger()}
	ctx, cancel := context.WithCancel(context.Background())
	a.cancel = cancel
	a.node = raft.StartNode(cfg, peers)
	for i, addr := range s.Addrs {
		if id := uint64(i + 1); id != a.id {
			link := &etcdLink{addr: addr, tls: creds.ClientTLSFor(nodeID(i + 1)), wake: make(chan struct{}, 1)}
			a.links[id] = link
			a.wg.Go(func() { link.run(ctx) })
		}
	}
	a.wg.Go(func() { a.accept(ctx) })
	a.wg.Go(func() { a.loop(ctx) })
	return a, nil
}

// Ready implements arm.
func (a *etcdArm) Ready() bool { return a.leader.Load() != 0 }

// Leads implements arm.
func (a *etcdArm) Leads() bool { return a.leader.Load() == a.id }

// Syncs implements arm.
func (a *etcdArm) Syncs() uint64 { return a.log.syncs.Load() }

// Client implements arm.
func (a *etcdArm) Client(ctx context.Context, _ string) (func(cmd []byte) error, func() error, error) {
	return func(cmd []byte) error { return a.propose(ctx, cmd) }, func() error { return nil }, nil
}

// etcdGiveUp is when a command counts as lost.
const etcdGiveUp = 10 * time.Second

func (a *etcdArm) propose(ctx context.Context, cmd []byte) error {
	done := make(chan struct{})
	a.mu.Lock()
	a.next++
	id := a.next
	a.waiting[id] = done
	a.mu.Unlock()
	data := binary.LittleEndian.AppendUint64(make([]byte, 0, len(cmd)+16), a.id)
	data = append(binary.LittleEndian.AppendUint64(data, id), cmd...)
	if err := a.node.Propose(ctx, data); err != nil {
		return err
	}
	timer := time.NewTimer(etcdGiveUp)
	defer timer.Stop()
	select {
	case <-done:
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.failed
	case <-timer.C:
		return errors.New("no outcome: was leadership lost?")
	}
}

// loop is the loop of the library's documentation.
func (a *etcdArm) loop(ctx context.Context) {
	ticker := time.NewTicker(etcdTick)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			a.node.Tick()
		case rd := <-a.node.Ready():
			if err := a.ready(&rd); err != nil {
				a.fail(err)
				return
			}
			a.node.Advance()
		case <-ctx.Done():
			return
		}
	}
}

func (a *etcdArm) ready(rd *raft.Ready) error {
	if rd.SoftState != nil {
		a.leader.Store(rd.SoftState.Lead)
	}
	leads := a.Leads()
	if leads {
		if err := a.send(rd.Messages); err != nil {
			return err
		}
	}
	if err := a.save(rd); err != nil {
		return err
	}
	if !leads {
		if err := a.send(rd.Messages); err != nil {
			return err
		}
	}
	return a.apply(rd.CommittedEntries)
}

// save makes entries and hard state durable and gives them to the storage.
func (a *etcdArm) save(rd *raft.Ready) (err error) {
	put := func(m proto.Message) {
		if err == nil {
			var frame []byte
			if frame, err = (proto.MarshalOptions{}).MarshalAppend(a.log.begin(), m); err == nil {
				a.log.end(frame)
			}
		}
	}
	for _, e := range rd.Entries {
		put(e)
	}
	if !raft.IsEmptyHardState(rd.HardState) {
		put(rd.HardState)
	}
	if err == nil && rd.MustSync {
		err = a.log.commit()
	}
	if err != nil {
		return err
	}
	if !raft.IsEmptyHardState(rd.HardState) {
		if err := a.storage.SetHardState(rd.HardState); err != nil {
			return err
		}
	}
	return a.storage.Append(rd.Entries)
}

func (a *etcdArm) send(msgs []*raftpb.Message) error {
	for _, m := range msgs {
		link := a.links[m.GetTo()]
		if link == nil {
			continue
		}
		if err := link.put(m); err != nil {
			return err
		}
	}
	return nil
}

func (a *etcdArm) apply(entries []*raftpb.Entry) error {
	for _, e := range entries {
		switch {
		case e.GetType() == raftpb.EntryConfChange:
			var cc raftpb.ConfChange
			if err := proto.Unmarshal(e.GetData(), &cc); err != nil {
				return err
			}
			a.confState = a.node.ApplyConfChange(&cc)
		case len(e.GetData()) > 0:
			a.command(e.GetData())
		}
		if at := e.GetIndex(); at > a.compacted+2*etcdKept {
			a.compacted = at - etcdKept
			if err := a.storage.Compact(a.compacted); err != nil {
				return err
			}
		}
	}
	return nil
}

func (a *etcdArm) command(data []byte) {
	from, id := binary.LittleEndian.Uint64(data), binary.LittleEndian.Uint64(data[8:])
	a.led.apply(data[16:])
	if from != a.id {
		return
	}
	a.mu.Lock()
	done := a.waiting[id]
	delete(a.waiting, id)
	a.mu.Unlock()
	if done != nil {
		close(done)
	}
}

// fail answers everybody who waits.
func (a *etcdArm) fail(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.failed = err
	for id, done := range a.waiting {
		close(done)
		delete(a.waiting, id)
	}
}

// Close implements arm.
func (a *etcdArm) Close() error {
	a.cancel()
	a.node.Stop()
	err := a.listen.Close()
	a.wg.Wait()
	return errors.Join(a.failed, err, a.log.file.Close())
}

// accept takes the connections of the others.
func (a *etcdArm) accept(ctx context.Context) {
	for {
		c, err := a.listen.Accept()
		if err != nil {
			return // closed
		}
		a.wg.Go(func() {
			stop := context.AfterFunc(ctx, func() { _ = c.Close() })
			defer stop()
			if err := a.receive(ctx, c); ctx.Err() == nil && !errors.Is(err, io.EOF) {
				a.fail(fmt.Errorf("a message cannot be read: %w", err))
			}
		})
	}
}

func (a *etcdArm) receive(ctx context.Context, c net.Conn) error {
	in := bufio.NewReaderSize(c, 64<<10)
	var head [4]byte
	var buf []byte
	for {
		if _, err := io.ReadFull(in, head[:]); err != nil {
			return err
		}
		n := int(binary.LittleEndian.Uint32(head[:]))
		if cap(buf) < n {
			buf = make([]byte, n)
		}
		if _, err := io.ReadFull(in, buf[:n]); err != nil {
			return err
		}
		m := &raftpb.Message{}
		if err := proto.Unmarshal(buf[:n], m); err != nil {
			return err
		}
		if err := a.node.Step(ctx, m); err != nil && ctx.Err() == nil {
			return err
		}
	}
}

// etcdLink sends to one replica. What gathers while it writes leaves together.
type etcdLink struct {
	addr string
	tls  *tls.Config
	wake chan struct{}

	mu      sync.Mutex
	pending []byte
}

// linkMax bounds what waits for a replica that does not take it, in bytes.
const linkMax = 64 << 20

func (l *etcdLink) put(m *raftpb.Message) (err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := len(l.pending)
	if at > linkMax {
		return nil // lost, as the protocol allows
	}
	l.pending = append(l.pending, 0, 0, 0, 0)
	l.pending, err = (proto.MarshalOptions{}).MarshalAppend(l.pending, m)
	binary.LittleEndian.PutUint32(l.pending[at:], uint32(len(l.pending)-at-4))
	select {
	case l.wake <- struct{}{}:
	default:
	}
	return err
}

func (l *etcdLink) run(ctx context.Context) {
	var spare []byte
	for ctx.Err() == nil {
		c, err := (&tls.Dialer{Config: l.tls}).DialContext(ctx, "tcp", l.addr)
		for err == nil {
			select {
			case <-l.wake:
			case <-ctx.Done():
				_ = c.Close()
				return
			}
			l.mu.Lock()
			out := l.pending
			l.pending = spare[:0]
			l.mu.Unlock()
			_, err = c.Write(out)
			spare = out
		}
		if c != nil {
			_ = c.Close()
		}
		select {
		case <-time.After(etcdTick):
		case <-ctx.Done():
		}
	}
}

func quietLogger() raft.Logger {
	return &raft.DefaultLogger{Logger: log.New(io.Discard, "", 0)}
}
