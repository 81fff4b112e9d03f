package mountinfo

import (
	"errors"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Table is what is mounted in this process's namespace, read again only when the
// kernel says that it has changed: proc_pid_mountinfo(5) can be polled. The zero
// Table is ready. Its methods may be called concurrently.
type Table struct {
	mu     sync.Mutex
	fd     int
	open   bool
	mounts []Mount
}

// List is as List of the package. What it returns must not be changed.
func (t *Table) List() ([]Mount, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open {
		changed, err := t.changed()
		if err != nil || !changed {
			return t.mounts, err
		}
		if err := t.close(); err != nil {
			return nil, err
		}
	}
	fd, err := unix.Open("/proc/self/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: "/proc/self/mountinfo", Err: err}
	}
	// Changes from here on are told by poll.
	t.fd, t.open = fd, true
	text, err := io.ReadAll(reader(fd))
	if err != nil {
		return nil, errors.Join(err, t.close())
	}
	t.mounts = Parse(string(text))
	return t.mounts, nil
}

// changed asks the kernel whether something was mounted or unmounted.
func (t *Table) changed() (bool, error) {
	for {
		fds := []unix.PollFd{{Fd: int32(t.fd), Events: unix.POLLPRI}}
		n, err := unix.Poll(fds, 0)
		if !errors.Is(err, unix.EINTR) {
			return n > 0, err
		}
	}
}

// Close frees what List holds. List may be called again.
func (t *Table) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.open {
		return nil
	}
	return t.close()
}

func (t *Table) close() error {
	t.open = false
	return unix.Close(t.fd)
}

// reader reads a file that is not the runtime's to poll.
type reader int

func (r reader) Read(b []byte) (int, error) {
	n, err := unix.Read(int(r), b)
	if n == 0 && err == nil {
		err = io.EOF
	}
	return max(n, 0), err
}
