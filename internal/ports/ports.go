// Package ports finds TCP ports of this machine that stay free until a server
// takes them.
package ports

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/koinon/koinon/internal/sys"
)

// Ports are looked for in this range, below the one from which the kernel
// takes ports for outgoing connections and for who listens on any: a port of
// that range may be taken by any connection while its server is down, even by
// one to the server itself, which would then talk to itself.
const (
	low  = 17000
	high = 32000
)

var (
	first = sync.OnceValue(func() uint64 { return rand.Uint64N(high - low) })
	tried atomic.Uint64
)

// Free returns n ports of 127.0.0.1 on which nobody listens. The search starts
// anywhere, so that two processes rarely meet, and goes on from there: no port
// is returned twice before all were. It may be called concurrently.
//
// Errors: sys.Unavailable, there are not so many.
func Free(n int) ([]int, error) {
	below := high
	if l, ok := ephemeralLow(); ok && l > low+1000 {
		below = min(below, l)
	}
	size := below - low
	found := make([]int, 0, n)
	for i := 0; i < size && len(found) < n; i++ {
		port := low + int((first()+tried.Add(1))%uint64(size))
		if Check(Loopback(port)) == nil {
			found = append(found, port)
		}
	}
	if len(found) < n {
		return nil, sys.E(sys.Op("ports.Free"), sys.Unavailable,
			fmt.Sprintf("found %d free ports of 127.0.0.1 from %d to %d, need %d", len(found), low, below, n))
	}
	return found, nil
}

// Loopback is host:port on this machine alone.
func Loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// Check tries to listen on addr, host:port, and returns why that is not possible.
func Check(addr string) error {
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
