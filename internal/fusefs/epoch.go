//go:build linux

package fusefs

import (
	"encoding/binary"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/koinon/koinon/internal/sys"
)

// Names that the kernel keeps (Options.EntryTTL) have to be given up when they
// are revoked. notify_inval_entry, which does it for one name, waits for the
// lock of the directory, which a request may hold that itself waits for the
// same revocation on another mount. Since protocol 7.44 the kernel has an epoch
// for all names instead: raising it takes no lock, and a name that was looked
// up before is looked up again when it is next used. A lookup that is under way
// counts as before.
const (
	epochMinor  = 44
	notifyEpoch = 8 // FUSE_NOTIFY_INC_EPOCH, linux/fuse.h
)

// epoch is a second descriptor of the connection, to raise its epoch with.
type epoch struct {
	mu sync.Mutex
	fd int // -1: none
}

// openEpoch duplicates the descriptor of a mount, without which nothing of the
// kind can be done.
func openEpoch(device int) *epoch {
	fd, err := unix.FcntlInt(uintptr(device), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		fd = -1
	}
	return &epoch{fd: fd}
}

func (e *epoch) close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.fd < 0 {
		return nil
	}
	fd := e.fd
	e.fd = -1
	return os.NewSyscallError("close", unix.Close(fd))
}

// CanForgetNames says whether the kernel can be made to look all names up
// again. Without it EntryTTL must stay 0 for names that others may change.
func (s *Server) CanForgetNames() bool {
	s.epoch.mu.Lock()
	defer s.epoch.mu.Unlock()
	k := s.fuse.KernelSettings()
	return s.epoch.fd >= 0 && k.Major == 7 && k.Minor >= epochMinor
}

// ForgetNames makes the kernel look every name up again when it is next used.
// It takes no lock and may be called from anywhere, where CanForgetNames.
func (s *Server) ForgetNames() error {
	s.epoch.mu.Lock()
	defer s.epoch.mu.Unlock()
	if s.epoch.fd < 0 {
		return nil // unmounted: the kernel has nothing left
	}
	var msg [16]byte // struct fuse_out_header: a notification has no unique ID
	binary.NativeEndian.PutUint32(msg[0:], uint32(len(msg)))
	binary.NativeEndian.PutUint32(msg[4:], notifyEpoch)
	if _, err := unix.Write(s.epoch.fd, msg[:]); err != nil {
		return sys.E(sys.Op("fusefs.ForgetNames"), os.NewSyscallError("write", err))
	}
	return nil
}
