//go:build linux

package devcluster

import (
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"

	"github.com/koinon/koinon/internal/ports"
	"github.com/koinon/koinon/internal/sys"
)

// checkPort says what to do when a node's port has been taken since.
func (n *node) checkPort() error {
	err := ports.Check(n.addr)
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
