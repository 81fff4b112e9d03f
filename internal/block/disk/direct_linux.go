package disk

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"unsafe"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"

	"github.com/koinon/koinon/internal/sys"
)

// Large records bypass the page cache (open(2), O_DIRECT): the bytes come once
// and are cached by the clients that read them, and copying them through fresh
// pages of the kernel costs several times as much as the disk does.

// directFile is a second descriptor of a segment, for direct transfers; nil
// where the file system has none.
type directFile struct{ f *os.File }

// openDirect opens f once more.
func openDirect(f vfs.File) *directFile {
	fd := f.Fd()
	if fd == vfs.InvalidFd {
		return nil
	}
	d, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fd), os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return nil
	}
	return &directFile{d}
}

func (d *directFile) close() {
	if d != nil {
		_ = d.f.Close() // what was written counts by the syncs of the other descriptor
	}
}

// recordBuffer is memory for a whole record that direct transfers can use.
type recordBuffer struct{ b []byte }

var recordBuffers = sync.Pool{New: func() any {
	raw := make([]byte, sectorSize+sys.BlockSize+sectorSize)
	skip := -int(uintptr(unsafe.Pointer(&raw[0]))) & (sectorSize - 1)
	return &recordBuffer{raw[skip : skip+sectorSize+sys.BlockSize]}
}}

// writeRecord writes a header and a payload to their place in one transfer. It
// is false when the file takes no direct transfers after all.
func (d *directFile) writeRecord(h *header, payload []byte) (bool, error) {
	if d == nil {
		return false, nil
	}
	buf := recordBuffers.Get().(*recordBuffer)
	defer recordBuffers.Put(buf)
	rec := buf.b[:recordSize(len(payload))]
	h.encode(rec)
	clear(rec[sectorSize+copy(rec[sectorSize:], payload):])
	_, err := d.f.WriteAt(rec, h.offset)
	if errors.Is(err, unix.EINVAL) {
		return false, nil
	}
	return true, err
}

// isCached reports whether the page cache has all of the n bytes from off on. A
// read that may not wait (RWF_NOWAIT) would tell as well, but it makes the
// kernel read ahead what it does not have: from the disk, a second time. A
// kernel without cachestat(2) knows of nothing.
func isCached(f vfs.File, off int64, n int) bool {
	var st unix.Cachestat_t
	err := unix.Cachestat(uint(f.Fd()), &unix.CachestatRange{Off: uint64(off), Len: uint64(n)}, &st, 0)
	page := int64(os.Getpagesize())
	return err == nil && int64(st.Cache) > (off+int64(n)-1)/page-off/page
}

// readAt fills dst, which is whole pages of a payload or its end, from off. It
// is false when the bytes should be read through the page cache: they are
// there already, or the memory or the file is not fit for direct transfers.
func (d *directFile) readAt(cached vfs.File, dst []byte, off int64) (bool, error) {
	n := int(alignUp(int64(len(dst))))
	if d == nil || off%sectorSize != 0 || n > cap(dst) || uintptr(unsafe.Pointer(unsafe.SliceData(dst)))%sectorSize != 0 {
		return false, nil
	}
	if isCached(cached, off, len(dst)) {
		return false, nil
	}
	got, err := d.f.ReadAt(dst[:n], off)
	if got >= len(dst) {
		return true, nil
	}
	if errors.Is(err, unix.EINVAL) {
		return false, nil
	}
	return true, err
}
