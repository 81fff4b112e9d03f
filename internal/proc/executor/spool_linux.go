package executor

import (
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/koinon/koinon/internal/sys"
)

const (
	copyBuffer = 32 << 10 // bytes read from a pipe at once
	// punchEvery is how many acknowledged bytes are freed at once, each time after what is acknowledged was written.
	punchEvery = 1 << 20
	fsBlock    = 4096 // holes are multiples of it
	// fullRetry is how long to wait for space on the disk of the spools.
	fullRetry = time.Second
)

// spool keeps one output of a process: a file with the bytes at their offsets in the stream. Methods may be called
// concurrently.
type spool struct {
	dir    string
	id     ID
	stream Stream
	max    int64 // bytes kept and not acknowledged
	done   chan struct{}

	mu       sync.Mutex
	f        *os.File // nil before the first byte
	state    Spool
	punched  int64
	draining bool
	changed  chan struct{} // closed at every change, and replaced
}

func newSpool(dir string, id ID, stream Stream, max int64) *spool {
	if max <= 0 {
		max = DefaultSpoolMax
	}
	return &spool{dir: dir, id: id, stream: stream, max: max, done: make(chan struct{}), changed: make(chan struct{})}
}

// recoverSpool finds the spool of a process that has ended.
func recoverSpool(dir string, id ID, stream Stream) (*spool, error) {
	s := newSpool(dir, id, stream, 0)
	close(s.done)
	s.state.Final = true
	info, err := os.Stat(s.path())
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	} else if err != nil {
		return nil, err
	}
	s.state.Size = info.Size()
	acks, err := os.ReadFile(spoolPath(dir, id, ackSuffix))
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	} else if err != nil {
		return nil, err
	}
	if at := ackSize * int(stream-Stdout); len(acks) >= at+ackSize {
		s.state.Acked = min(int64(binary.LittleEndian.Uint64(acks[at:])), s.state.Size)
		s.punched = s.state.Acked
	}
	return s, nil
}

func (s *spool) path() string { return spoolPath(s.dir, s.id, s.stream.suffix()) }

// change wakes who waits. mu is held.
func (s *spool) change() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// copy takes in what comes out of a pipe until all its writers have gone, or drain, and closes it. While max bytes are
// not acknowledged it does not read, and the process waits in its write(2).
func (s *spool) copy(r *os.File) {
	defer close(s.done)
	buf := make([]byte, copyBuffer)
	for s.room() {
		n, err := r.Read(buf)
		s.write(buf[:n])
		if errors.Is(err, os.ErrDeadlineExceeded) {
			s.rest(r, buf)
			break
		} else if err != nil {
			break // io.EOF: pipes have no other
		}
	}
	if s.isDraining() {
		s.rest(r, buf)
	}
	if err := r.Close(); err != nil {
		slog.Error("close an output", "process", s.id.String(), "error", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.f != nil {
		if err := s.f.Close(); err != nil {
			slog.Error("close a spool", "process", s.id.String(), "error", err)
		}
		s.f = nil
	}
	s.state.Final = true
	s.change()
}

// room waits until there is room in the spool, or the process has ended: then false.
func (s *spool) room() bool {
	for {
		s.mu.Lock()
		full, draining, changed := s.state.Size-s.state.Acked >= s.max, s.draining, s.changed
		s.mu.Unlock()
		if !full || draining {
			return !draining
		}
		<-changed
	}
}

func (s *spool) isDraining() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.draining
}

// rest takes in what is in the pipe and does not wait for more: what still holds it open does not belong to the process.
// The deadline that drain sets at about this time is nothing to it: it reads the descriptor itself, which does not block.
func (s *spool) rest(r *os.File, buf []byte) {
	raw, err := r.SyscallConn()
	for n := 1; err == nil && n > 0; {
		n = 0
		err = raw.Control(func(fd uintptr) {
			n, err = unix.Read(int(fd), buf)
			for errors.Is(err, unix.EINTR) {
				n, err = unix.Read(int(fd), buf)
			}
		})
		s.write(buf[:max(n, 0)])
	}
}

// write appends bytes. A disk that is full is waited for, as long as it takes: the process waits too, and nothing is lost.
func (s *spool) write(p []byte) {
	for len(p) > 0 {
		n, err := s.tryWrite(p)
		p = p[n:]
		if err != nil {
			slog.Error("an output waits for its spool", "process", s.id.String(), "error", err)
			time.Sleep(fullRetry)
		}
	}
}

func (s *spool) tryWrite(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.f == nil {
		f, err := os.OpenFile(s.path(), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
		if err != nil {
			return 0, err
		}
		s.f = f
	}
	n, err := s.f.WriteAt(p, s.state.Size)
	s.state.Size += int64(n)
	s.change()
	return n, err
}

// drain ends copy once it has what is in the pipe, and returns the state, which is final. Nothing that belongs to the
// process may be alive.
func (s *spool) drain(r *os.File) Spool {
	s.mu.Lock()
	s.draining = true
	s.change()
	s.mu.Unlock()
	_ = r.SetReadDeadline(time.Unix(1, 0)) // fails when copy has closed it, having seen its end
	<-s.done
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state
}

// await returns the state when the size is above a number of bytes, or final.
func (s *spool) await(ctx context.Context, beyond int64) (Spool, error) {
	for {
		s.mu.Lock()
		state, changed := s.state, s.changed
		s.mu.Unlock()
		if state.Size > beyond || state.Final {
			return state, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return state, ctx.Err()
		}
	}
}

const ackSize = 8 // of an offset in the file of acknowledgements

// ack frees what is before an offset. The offset is written before the bytes are gone, so that nobody reads a hole.
func (s *spool) ack(offset int64) error {
	const op = sys.Op("executor.Ack")
	s.mu.Lock()
	defer s.mu.Unlock()
	if offset > s.state.Size || offset < 0 {
		return sys.E(op, sys.Invalid, sys.Subject(s.id.String()), "the offset is not within what was printed")
	}
	if offset <= s.state.Acked {
		return nil
	}
	s.state.Acked = offset
	s.change()
	if offset-s.punched < min(punchEvery, max(s.max/4, fsBlock)) {
		return nil
	}
	f, err := os.OpenFile(spoolPath(s.dir, s.id, ackSuffix), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return sys.E(op, err)
	}
	_, err = f.WriteAt(binary.LittleEndian.AppendUint64(nil, uint64(offset)), ackSize*int64(s.stream-Stdout))
	if err = errors.Join(err, f.Close()); err != nil {
		return sys.E(op, err)
	}
	if f, err = os.OpenFile(s.path(), os.O_RDWR, 0); err != nil {
		return sys.E(op, err)
	}
	from, to := s.punched/fsBlock*fsBlock, offset/fsBlock*fsBlock
	err = punch(f, from, to-from)
	if err = errors.Join(err, f.Close()); err != nil {
		return sys.E(op, err)
	}
	s.punched = offset
	return nil
}

func punch(f *os.File, off, n int64) error {
	return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

// mustPunch fails when the file system of a directory cannot punch holes.
func mustPunch(dir string) error {
	f, err := os.CreateTemp(dir, "probe-")
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, 2*fsBlock))
	if err == nil {
		if err = punch(f, 0, fsBlock); errors.Is(err, unix.EOPNOTSUPP) {
			err = sys.E(sys.NotSupported, sys.Subject(dir),
				"its file system cannot punch holes, so that outputs would fill the disk: use a directory on ext4, xfs, btrfs or tmpfs")
		}
	}
	return errors.Join(err, f.Close(), os.Remove(f.Name()))
}

// discard removes what a process has left in the directory.
func discard(dir string, id ID) error {
	var err error
	for _, suffix := range []string{Stdout.suffix(), Stderr.suffix(), ackSuffix} {
		if e := os.Remove(spoolPath(dir, id, suffix)); !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	return err
}
