package transfer

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/koinon/koinon"
)

// diskSink is a file of this machine under construction.
type diskSink struct {
	f     *os.File
	final string // the name it gets; "" when it is written in place
	attrs koinon.Attrs
	mode  fs.FileMode // of the file that is replaced; 0 for none
	done  bool
	free  func() bool // of what stops a write when the copy is stopped; nil for nothing
}

func (f diskFolder) replace(ctx context.Context, name string, perm fs.FileMode, a koinon.Attrs) (sink, error) {
	final := f.full(name)
	s := &diskSink{attrs: a}
	info, err := os.Stat(final)
	switch {
	case err == nil && info.IsDir():
		return nil, &fs.PathError{Op: "open", Path: final, Err: errors.New("is a directory: remove it or choose another name")}
	case err == nil && info.Mode()&fs.ModeNamedPipe != 0: // an open that waited for a reader could not be stopped
		if s.f, err = os.OpenFile(final, os.O_WRONLY|syscall.O_NONBLOCK, 0); errors.Is(err, syscall.ENXIO) {
			err = &fs.PathError{Op: "open", Path: final, Err: errors.New("nobody reads this pipe: start its reader first")}
		}
		if err == nil {
			s.free = context.AfterFunc(ctx, func() { _ = s.f.SetWriteDeadline(time.Unix(1, 0)) })
		}
		return s, err
	case err == nil && !info.Mode().IsRegular(): // a device takes bytes as they come
		s.f, err = os.OpenFile(final, os.O_WRONLY, 0)
		return s, err
	case err == nil:
		s.mode = info.Mode()
		if final, err = filepath.EvalSymlinks(final); err != nil {
			return nil, err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	s.final = final
	s.f, err = os.OpenFile(filepath.Join(filepath.Dir(final), tempName()), os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm.Perm())
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: final, Err: errors.Unwrap(err)}
	}
	return s, nil
}

// Write implements io.Writer.
func (s *diskSink) Write(p []byte) (int, error) { return s.f.Write(p) }

// Commit closes the file and gives it its name.
func (s *diskSink) Commit() error {
	s.done = true
	err := s.close()
	if s.final == "" {
		return err
	}
	if err == nil && s.mode != 0 {
		err = os.Chmod(s.f.Name(), s.mode)
	}
	if err == nil {
		err = setDiskAttrs(s.f.Name(), s.attrs)
	}
	if err == nil {
		err = os.Rename(s.f.Name(), s.final)
	}
	if err != nil {
		return errors.Join(err, os.Remove(s.f.Name()))
	}
	return nil
}

// Abort closes the file and removes it.
func (s *diskSink) Abort() error {
	if s.done {
		return nil
	}
	s.done = true
	err := s.close()
	if s.final != "" {
		err = errors.Join(err, os.Remove(s.f.Name()))
	}
	return err
}

func (s *diskSink) close() error {
	if s.free != nil {
		s.free()
	}
	return s.f.Close()
}

func tempName() string {
	var tag [8]byte
	rand.Read(tag[:]) // never fails (crypto/rand)
	return koinon.TempPrefix + hex.EncodeToString(tag[:])
}

// setDiskAttrs changes what a has. Who may not give files away keeps them, as
// with cp -p.
func setDiskAttrs(path string, a koinon.Attrs) error {
	if a.UID != nil || a.GID != nil {
		if err := os.Lchown(path, id(a.UID), id(a.GID)); err != nil && !errors.Is(err, fs.ErrPermission) && !errors.Is(err, errors.ErrUnsupported) {
			return err
		}
	}
	if a.Mode != nil {
		if err := os.Chmod(path, *a.Mode); err != nil {
			return err
		}
	}
	if a.Atime.IsZero() && a.Mtime.IsZero() {
		return nil
	}
	return os.Chtimes(path, a.Atime, a.Mtime)
}

// id is the number for chown(2): -1 leaves an owner as it is.
func id(v *uint32) int {
	if v == nil {
		return -1
	}
	return int(*v)
}
