package cluster

import (
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/koinon/koinon/internal/sys"
)

const (
	// gateMin and gateMax bound how long an address waits after a wrong token;
	// every further one doubles it.
	gateMin = time.Second
	gateMax = 5 * time.Minute
	// gateSize bounds the addresses that are remembered.
	gateSize = 4096
)

// gate slows down who tries tokens: one request of an address at a time, and
// after a wrong one a pause that grows. The zero gate is ready.
type gate struct {
	mu    sync.Mutex
	peers map[string]*guest
}

type guest struct {
	inside bool
	wrong  int
	until  time.Time // nothing is taken before
}

// enter lets a request of a host in, or says sys.Busy. leave must be called
// when its outcome is known.
func (g *gate) enter(host string, now time.Time) (leave func(wrong bool, now time.Time), err error) {
	key := network(host)
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.peers[key]
	switch {
	case p == nil:
		if err := g.room(now); err != nil {
			return nil, err
		}
		p = &guest{}
		g.peers[key] = p
	case p.inside:
		return nil, busy("another request to join from %s is being answered: try again", host)
	case now.Before(p.until):
		return nil, busy("%d requests to join from %s had a wrong token: try again in %v", p.wrong, host, p.until.Sub(now).Round(time.Second))
	}
	p.inside = true
	return func(wrong bool, now time.Time) { g.leave(key, wrong, now) }, nil
}

func busy(format string, args ...any) error {
	return sys.E(opJoin, sys.Busy, fmt.Sprintf(format, args...))
}

// room forgets who has waited long enough when many are remembered. The caller
// holds g.mu.
func (g *gate) room(now time.Time) error {
	if g.peers == nil {
		g.peers = map[string]*guest{}
	}
	if len(g.peers) < gateSize {
		return nil
	}
	for key, p := range g.peers {
		if !p.inside && now.After(p.until) {
			delete(g.peers, key)
		}
	}
	if len(g.peers) >= gateSize {
		return busy("requests to join come from too many addresses: try again later")
	}
	return nil
}

func (g *gate) leave(key string, wrong bool, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.peers[key]
	p.inside = false
	if !wrong {
		delete(g.peers, key)
		return
	}
	p.wrong++
	p.until = now.Add(min(gateMin<<min(p.wrong-1, 20), gateMax))
}

// network is what one machine may have many addresses of: a /64 of IPv6.
func network(host string) string {
	a, err := netip.ParseAddr(host)
	if err != nil || a.Unmap().Is4() {
		return host
	}
	p, err := a.WithZone("").Prefix(64)
	if err != nil {
		return host
	}
	return p.String()
}
