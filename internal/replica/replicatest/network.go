// Package replicatest is for tests of what is built on replica: a network
// within the process that can lose, repeat and cut.
package replicatest

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/koinon/koinon/internal/replica"
	"github.com/koinon/koinon/internal/sys"
)

// Network joins hosts within one process. Its methods may be called
// concurrently.
type Network struct {
	mu        sync.Mutex
	rand      *rand.Rand
	endpoints map[sys.NodeID]*Endpoint
	cut       map[[2]sys.NodeID]bool
	loss      float64
	repeat    float64
	calls     func(from, to sys.NodeID, req []byte) ([]byte, error)
	wg        sync.WaitGroup
}

// NewNetwork returns a network that loses nothing. seed feeds its randomness.
func NewNetwork(seed uint64) *Network {
	return &Network{rand: rand.New(rand.NewPCG(seed, 0)), endpoints: map[sys.NodeID]*Endpoint{},
		cut: map[[2]sys.NodeID]bool{}}
}

// SetFaults sets the shares of messages, from 0 to 1, that are lost and that
// arrive twice. Calls fail at the share of loss.
func (n *Network) SetFaults(loss, repeat float64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.loss, n.repeat = loss, repeat
}

// SetCalls has fn see every request of Call before its receiver does: it may
// hold it up, change it, or lose it with an error. nil ends that.
func (n *Network) SetCalls(fn func(from, to sys.NodeID, req []byte) ([]byte, error)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.calls = fn
}

// Cut stops, or restores, what goes from one node to another.
func (n *Network) Cut(from, to sys.NodeID, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[[2]sys.NodeID{from, to}] = cut
}

// Isolate cuts a node off in both directions, or restores that.
func (n *Network) Isolate(id sys.NodeID, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for other := range n.endpoints {
		n.cut[[2]sys.NodeID{id, other}] = cut
		n.cut[[2]sys.NodeID{other, id}] = cut
	}
}

// Endpoint returns a node's place in the network, made when it is new.
func (n *Network) Endpoint(id sys.NodeID) *Endpoint {
	n.mu.Lock()
	defer n.mu.Unlock()
	e := n.endpoints[id]
	if e == nil {
		e = &Endpoint{net: n, id: id, wake: make(chan struct{}, 1), stop: make(chan struct{})}
		n.endpoints[id] = e
		n.wg.Add(1)
		go e.deliver()
	}
	return e
}

// Close ends deliveries.
func (n *Network) Close() {
	n.mu.Lock()
	for _, e := range n.endpoints {
		close(e.stop)
	}
	n.mu.Unlock()
	n.wg.Wait()
}

// route returns the receiver and how many times it gets the message.
func (n *Network) route(from, to sys.NodeID) (*Endpoint, int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	e := n.endpoints[to]
	if e == nil || n.cut[[2]sys.NodeID{from, to}] || n.loss > 0 && n.rand.Float64() < n.loss {
		return nil, 0
	}
	if n.repeat > 0 && n.rand.Float64() < n.repeat {
		return e, 2
	}
	return e, 1
}

// Endpoint is a node's replica.Transport.
type Endpoint struct {
	net  *Network
	id   sys.NodeID
	wake chan struct{}
	stop chan struct{}

	mu      sync.Mutex
	handler replica.Handler
	peers   map[sys.NodeID]bool
	queue   []queued
}

type queued struct {
	from  sys.NodeID
	frame []byte
}

// queueMax bounds the frames that wait for a receiver.
const queueMax = 1 << 14

var _ replica.Transport = (*Endpoint)(nil)

// Handle implements replica.Transport.
func (e *Endpoint) Handle(h replica.Handler) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.handler = h
}

// SetPeers implements replica.Transport.
func (e *Endpoint) SetPeers(peers []replica.Peer) {
	next := map[sys.NodeID]bool{}
	for _, p := range peers {
		if p.ID != e.id {
			next[p.ID] = true
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.peers = next
}

// knows reports whether a node is a peer. Messages of others are dropped.
func (e *Endpoint) knows(id sys.NodeID) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.peers[id]
}

// Send implements replica.Transport.
func (e *Endpoint) Send(to sys.NodeID, _ replica.Lane, frame []byte) {
	dst, times := e.net.route(e.id, to)
	if dst == nil || !e.knows(to) || !dst.knows(e.id) {
		return
	}
	dst.mu.Lock()
	if len(dst.queue) < queueMax {
		for range times {
			dst.queue = append(dst.queue, queued{e.id, slices.Clone(frame)})
		}
	}
	dst.mu.Unlock()
	select {
	case dst.wake <- struct{}{}:
	default:
	}
}

// Call implements replica.Transport.
func (e *Endpoint) Call(ctx context.Context, to sys.NodeID, req []byte) ([]byte, error) {
	const op = sys.Op("replicatest.Call")
	if !e.knows(to) {
		return nil, sys.E(op, sys.Invalid, "not a peer of this node")
	}
	dst, _ := e.net.route(e.id, to)
	if dst == nil {
		return nil, sys.E(op, sys.Unavailable, "the request was lost")
	}
	if !dst.knows(e.id) {
		return nil, sys.E(op, sys.Permission, "not a peer of that node")
	}
	e.net.mu.Lock()
	see := e.net.calls
	e.net.mu.Unlock()
	if see != nil {
		var err error
		if req, err = see(e.id, to, req); err != nil {
			return nil, err
		}
	}
	dst.mu.Lock()
	h := dst.handler
	dst.mu.Unlock()
	if h == nil {
		return nil, sys.E(op, sys.Unavailable, "nobody is there")
	}
	b, err := h.Call(ctx, e.id, req)
	if back, _ := dst.net.route(to, e.id); back == nil {
		return nil, sys.E(op, sys.Unavailable, "the answer was lost")
	}
	return b, err
}

// deliver is the endpoint's goroutine.
func (e *Endpoint) deliver() {
	defer e.net.wg.Done()
	var spare []queued
	for {
		e.mu.Lock()
		items, h := e.queue, e.handler
		e.queue = spare[:0]
		e.mu.Unlock()
		for _, q := range items {
			if h != nil {
				h.Message(q.from, q.frame)
			}
		}
		clear(items)
		spare = items
		if len(items) > 0 {
			continue
		}
		select {
		case <-e.wake:
		case <-e.stop:
			return
		}
	}
}
