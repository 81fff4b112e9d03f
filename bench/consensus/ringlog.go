package main

import (
	"encoding/binary"
	"hash/crc32"
	"os"
	"sync/atomic"
	"syscall"
)

// ringLog is a synced log for a library that brings none: frames of length,
// checksum and data, one write and one fdatasync for each batch. It is the
// most favourable case: the file was filled with zeroes beforehand, so that no
// sync has to change its metadata, and is used again from the start when it is
// full, because the benchmark's log is never longer than its memory.
type ringLog struct {
	file  *os.File
	at    int64
	buf   []byte
	syncs atomic.Uint64
}

// ringBytes is the size of the file.
const ringBytes = 64 << 20

func openRing(name string) (*ringLog, error) {
	f, err := os.Create(name)
	if err != nil {
		return nil, err
	}
	zero := make([]byte, 1<<20)
	for at := int64(0); at < ringBytes; at += int64(len(zero)) {
		if _, err := f.WriteAt(zero, at); err != nil {
			return nil, err
		}
	}
	return &ringLog{file: f}, f.Sync()
}

// begin begins a frame of a batch; what is appended to it is its data.
func (l *ringLog) begin() []byte { return append(l.buf, 0, 0, 0, 0, 0, 0, 0, 0) }

// end ends the frame that begin began.
func (l *ringLog) end(frame []byte) {
	head, data := frame[len(l.buf):], frame[len(l.buf)+8:]
	binary.LittleEndian.PutUint32(head, uint32(len(data)))
	binary.LittleEndian.PutUint32(head[4:], crc32.Checksum(data, castagnoli))
	l.buf = frame
}

// commit makes the batch durable.
func (l *ringLog) commit() error {
	if l.at+int64(len(l.buf)) > ringBytes {
		l.at = 0
	}
	n, err := l.file.WriteAt(l.buf, l.at)
	if err != nil {
		return err
	}
	l.at += int64(n)
	l.buf = l.buf[:0]
	l.syncs.Add(1)
	return syscall.Fdatasync(int(l.file.Fd()))
}
