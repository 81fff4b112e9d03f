package wal

import (
	"encoding/binary"
	"hash/crc32"
	"runtime"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// forgeVersion gives a segment header another format number.
func forgeVersion(b []byte, version uint32) {
	binary.LittleEndian.PutUint32(b[12:], version)
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b[12:headerUsed], castagnoli))
}

// FuzzReplay opens logs of arbitrary bytes: no panic, memory bounded by the
// files' size, and a log that opens takes records and gives them back.
func FuzzReplay(f *testing.F) {
	good := make([]byte, headerBytes)
	header{segment: 1, first: 1}.encode(good)
	at := len(good)
	good = appendRecord(good, Record{Type: Entry, Group: 1, Slot: 1, Body: []byte("hello")})
	seal(good[at:], 1, 1, true)
	at = len(good)
	good = appendRecord(good, Record{Type: State, Group: 1, Body: []byte("state")})
	seal(good[at:], 1, 2, true)
	f.Add(good, []byte(nil))
	f.Add(good[:len(good)-9], good)
	f.Add([]byte(nil), good)
	f.Add(good[headerBytes:], good[:headerBytes])
	f.Fuzz(func(t *testing.T, first, second []byte) {
		if len(first)+len(second) > 1<<20 {
			return
		}
		fs := vfs.NewMem()
		if err := fs.MkdirAll("/log", 0o700); err != nil {
			t.Fatal(err)
		}
		for i, b := range [][]byte{first, second} {
			w, err := fs.Create("/log/"+segmentName(uint64(i+1)), category)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(b); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		l, _, _, err := tryOpen(fs, true)
		runtime.ReadMemStats(&after)
		// A window, the prepared segment, and what the records need.
		if limit := uint64(8<<20 + 64*(len(first)+len(second))); after.TotalAlloc-before.TotalAlloc > limit {
			t.Fatalf("at most %d bytes allocated expected, found %d", limit, after.TotalAlloc-before.TotalAlloc)
		}
		if err != nil {
			return
		}
		put(t, l, entry(9, 1<<40, "new"))
		closeLog(t, l)
		l, c, r := open(t, fs, true)
		defer closeLog(t, l)
		if r.Damaged != nil || c.entries[9][1<<40] != "new" {
			t.Fatalf("a sound log with the new entry expected, found %+v", r)
		}
	})
}
