//go:build linux

// Package logfile writes a log to a file of bounded size: when the file is
// full it becomes FILE.1, which replaces the one before.
//
// A process that was started with its standard error in the same file takes
// it along, so that a panic is found where the log is.
package logfile

import (
	"errors"
	"io/fs"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// DefaultMax is the size in bytes at which a log file is usually rotated.
const DefaultMax = 16 << 20

// File is an io.WriteCloser for slog handlers. Its methods may be called
// concurrently.
type File struct {
	path   string
	max    int64
	stderr bool

	mu   sync.Mutex
	file *os.File
	size int64
}

// Open opens path for appending and creates it when it is missing, readable
// by its owner only. max is the size in bytes beyond which the file is
// rotated.
func Open(path string, max int64) (*File, error) {
	l := &File{path: path, max: max}
	if err := l.open(); err != nil {
		return nil, err
	}
	stderr, err := os.Stderr.Stat()
	if err != nil {
		return l, nil // it is closed, so nothing is written there
	}
	mine, err := l.file.Stat()
	if err != nil {
		return nil, errors.Join(err, l.file.Close())
	}
	l.stderr = os.SameFile(stderr, mine)
	return l, nil
}

// open opens the file that is at path now. The caller holds mu or is alone.
func (l *File) open() error {
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil && l.stderr {
		err = unix.Dup3(int(f.Fd()), int(os.Stderr.Fd()), 0)
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	l.file, l.size = f, info.Size()
	return nil
}

// Write appends p, which is never torn between two files. When the file
// cannot be rotated, the log goes on in the one that is open.
func (l *File) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return 0, fs.ErrClosed
	}
	if l.size > 0 && l.size+int64(len(p)) > l.max {
		l.rotate()
	}
	n, err := l.file.Write(p)
	l.size += int64(n)
	return n, err
}

// rotate keeps what is open when anything fails: a log in an unexpected place
// is better than none. The next try comes after another max bytes.
func (l *File) rotate() {
	old := l.file
	l.size = 0
	if err := os.Rename(l.path, l.path+".1"); err != nil {
		return
	}
	if err := l.open(); err != nil {
		l.file = old
		return
	}
	// Everything written to the old file is in the kernel already.
	_ = old.Close()
}

// Close closes the file. Standard error stays where it is.
func (l *File) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	err := l.file.Close()
	l.file = nil
	return err
}
