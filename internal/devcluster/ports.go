//go:build linux

package devcluster

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/koinon/koinon/internal/sys"
)

// Ports are looked for in this range, below the one from which the kernel
// takes ports for outgoing connections: a port of that range may be taken by
// any connection while its node is down, even by one to the node itself,
// which would then talk to itself.
const (
	portsLow  = 17000
	portsHigh = 32000
)

// freePorts returns n ports of 127.0.0.1 on which nobody listens. The search
// starts anywhere, so that two clusters made at once rarely meet.
func freePorts(n int) ([]int, error) {
	high := portsHigh
	if low, ok := ephemeralLow(); ok && low > portsLow+1000 {
		high = min(high, low)
	}
	size := high - portsLow
	start := rand.IntN(size)
	ports := make([]int, 0, n)
	for i := 0; i < size && len(ports) < n; i++ {
		port := portsLow + (start+i)%size
		if checkFree(loopback(port)) == nil {
			ports = append(ports, port)
		}
	}
	if len(ports) < n {
		return nil, sys.E(sys.Op("dev up"), sys.Unavailable,
			fmt.Sprintf("found %d free ports of 127.0.0.1 from %d to %d, need %d", len(ports), portsLow, high, n))
	}
	return ports, nil
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// checkFree tries to listen on addr.
func checkFree(addr string) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	return l.Close()
}

// ephemeralLow is the first port that the kernel gives to outgoing
// connections.
func ephemeralLow() (int, bool) {
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return 0, false
	}
	fields := strings.Fields(string(text))
	if len(fields) == 0 {
		return 0, false
	}
	low, err := strconv.Atoi(fields[0])
	return low, err == nil
}

// checkPort says what to do when a node's port has been taken since.
func (n *node) checkPort() error {
	err := checkFree(n.addr)
	if err == nil {
		return nil
	}
	const op = sys.Op("dev up")
	if !errors.Is(err, unix.EADDRINUSE) {
		return sys.E(op, sys.Subject(n.name), err)
	}
	_, port, err := net.SplitHostPort(n.addr)
	if err != nil {
		return sys.E(op, sys.Subject(n.name), err)
	}
	return sys.E(op, sys.Busy, sys.Subject(n.name), fmt.Sprintf(
		"port %s of 127.0.0.1, which is this node's, is in use by another process: find it with `ss -ltnp sport = :%s`, stop it, and run `koinon dev up` again; or give up this cluster's data with `koinon dev reset`, which picks new ports",
		port, port))
}
