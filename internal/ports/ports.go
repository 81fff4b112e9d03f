// Package ports finds TCP ports of this machine that stay free until a server
// takes them.
package ports

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/koinon/koinon/internal/sys"
)

// Ports are looked for in this range, below the one from which the kernel
// takes ports for outgoing connections and for who listens on any: a port of
// that range may be taken by any connection while its server is down, even by
// one to the server itself, which would then talk to itself. The servers of a
// Redis Cluster take a second port ten thousand above their own, and so above
// all of these.
const (
	low   = 17000
	high  = 27000
	block = 100
)

// pool is the block of ports that this process gives out, whose first port it
// listens on as long as it lives: so two processes have none in common.
var pool struct {
	sync.Mutex
	rest []int // of its ports, in any order, since one of a server that is down looks free
	held []net.Listener
}

// Free returns n ports of 127.0.0.1 on which nobody listens, and which no other
// process that asks is given as long as this one lives. No port is returned
// twice. It may be called concurrently.
//
// Errors: sys.Unavailable, there are not so many.
func Free(n int) ([]int, error) {
	pool.Lock()
	defer pool.Unlock()
	found := make([]int, 0, n)
	for len(found) < n {
		if len(pool.rest) == 0 && !claim() {
			return nil, sys.E(sys.Op("ports.Free"), sys.Unavailable,
				fmt.Sprintf("found %d free ports of 127.0.0.1 from %d to %d, need %d", len(found), low, high, n))
		}
		port := pool.rest[0]
		pool.rest = pool.rest[1:]
		if Check(Loopback(port)) == nil {
			found = append(found, port)
		}
	}
	return found, nil
}

// claim makes a block that nobody has the pool's. The search starts anywhere.
func claim() bool {
	below := high
	if l, ok := ephemeralLow(); ok && l >= low+block {
		below = min(below, l)
	}
	for _, i := range rand.Perm((below - low) / block) {
		first := low + i*block
		if l, err := net.Listen("tcp", Loopback(first)); err == nil {
			pool.held = append(pool.held, l)
			for _, i := range rand.Perm(block - 1) {
				pool.rest = append(pool.rest, first+1+i)
			}
			return true
		}
	}
	return false
}

// Loopback is host:port on this machine alone.
func Loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// Check tries to listen on addr, host:port, and returns why that is not possible.
func Check(addr string) error {
	if runtime.GOOS == "linux" { // elsewhere net.Listen takes the lock
		// A child that is forked meanwhile has the socket until it execs, and the port is taken as long.
		syscall.ForkLock.RLock()
		defer syscall.ForkLock.RUnlock()
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	return l.Close()
}

// ephemeralLow is the first port that the kernel gives to outgoing
// connections (ip(7), ip_local_port_range).
func ephemeralLow() (int, bool) {
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return 0, false
	}
	fields := strings.Fields(string(text))
	if len(fields) == 0 {
		return 0, false
	}
	l, err := strconv.Atoi(fields[0])
	return l, err == nil
}
