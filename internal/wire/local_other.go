//go:build !linux

package wire

import (
	"errors"
	"net"
)

// peerUser is the user of the process that listens at the other end.
func peerUser(*net.UnixConn) (uid int, err error) { return 0, errors.ErrUnsupported }

// widen gives a local socket its buffer.
func widen(*net.UnixConn) {}
