//go:build !linux

package bench

import (
	"errors"
	"io"
	"os"
)

// handle is an open file.
type handle struct{ f *os.File }

func openRaw(path string, flags int, mode uint32) (handle, error) {
	f, err := os.OpenFile(path, flags, os.FileMode(mode))
	return handle{f}, err
}

// writeAt writes all of p.
func (h handle) writeAt(p []byte, off int64) error {
	_, err := h.f.WriteAt(p, off)
	return err
}

// readAt reads until p is full or the file ends.
func (h handle) readAt(p []byte, off int64) (int, error) {
	n, err := h.f.ReadAt(p, off)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

func (h handle) fsync() error { return h.f.Sync() }
func (h handle) close() error { return h.f.Close() }

// lstatRaw returns the size and whether path is a directory.
func lstatRaw(path string) (size int64, dir bool, err error) {
	fi, err := os.Lstat(path)
	if err != nil {
		return 0, false, err
	}
	return fi.Size(), fi.IsDir(), nil
}

func renameRaw(from, to string) error { return os.Rename(from, to) }
func unlinkRaw(path string) error     { return os.Remove(path) }

// settle has no portable system call.
func settle() {}

// dropCaches is known on Linux only.
func dropCaches() error { return errors.ErrUnsupported }
