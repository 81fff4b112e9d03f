package wal

import (
	"errors"
	"fmt"
	"io"

	"github.com/koinon/koinon/internal/env/envfs"
	"github.com/koinon/koinon/internal/sys"
)

// CheckFormat refuses a log of a format that this program does not know, with
// sys.NotSupported, and changes nothing. A directory that is missing is fine.
func CheckFormat(fs envfs.FS, dir string) error {
	if _, err := fs.Stat(dir); err != nil {
		return nil // Open makes it, or says why not
	}
	names, err := fs.List(dir)
	if err != nil {
		return sys.E(sys.Op("wal.CheckFormat"), sys.Subject(dir), err)
	}
	for _, name := range names {
		id, ok := parseSegmentName(name)
		if !ok {
			continue
		}
		f, err := fs.Open(fs.PathJoin(dir, name))
		if err != nil {
			return sys.E(sys.Op("wal.CheckFormat"), sys.Subject(name), err)
		}
		b := make([]byte, headerUsed)
		_, err = io.ReadFull(f, b)
		if cerr := f.Close(); cerr != nil {
			return sys.E(sys.Op("wal.CheckFormat"), sys.Subject(name), cerr)
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			continue // not in use yet
		}
		if err != nil {
			return sys.E(sys.Op("wal.CheckFormat"), sys.Subject(name), err)
		}
		if h, version, ok := decodeHeader(b); ok && h.segment == id && version != formatVersion {
			return otherFormat(id, version)
		}
	}
	return nil
}

func otherFormat(segment uint64, version uint32) error {
	return sys.E(sys.NotSupported, sys.Subject(segmentName(segment)), fmt.Sprintf(
		"the log has format %d and this program knows %d: run the newer koinon", version, formatVersion))
}
