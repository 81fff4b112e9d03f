//go:build linux

package fusefs_test

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// The benchmarks run against a real mount of a tree and store in memory: they
// measure what FUSE, fusefs and vfs cost.

func BenchmarkSequentialWrite(b *testing.B) {
	f, err := os.Create(filepath.Join(mounted(b), "f"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	p := make([]byte, 1<<20)
	b.SetBytes(int64(len(p)))
	off := int64(0)
	for b.Loop() {
		if _, err := f.WriteAt(p, off); err != nil {
			b.Fatal(err)
		}
		off = (off + int64(len(p))) % (1 << 30)
	}
}

func BenchmarkSequentialRead(b *testing.B) {
	name := filepath.Join(mounted(b), "f")
	if err := os.WriteFile(name, make([]byte, 256<<20), 0o644); err != nil {
		b.Fatal(err)
	}
	p := make([]byte, 1<<20)
	b.SetBytes(256 << 20)
	for b.Loop() {
		b.StopTimer()
		f, err := os.Open(name)
		if err != nil {
			b.Fatal(err)
		}
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil { // this file's pages only
			b.Fatal(err)
		}
		b.StartTimer()
		for off := int64(0); off < 256<<20; off += int64(len(p)) {
			if _, err := f.ReadAt(p, off); err != nil {
				b.Fatal(err)
			}
		}
		if err := f.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkSmallFile(b *testing.B) {
	dir := mounted(b)
	p := make([]byte, 16<<10)
	n := 0
	for b.Loop() {
		n++
		if err := os.WriteFile(filepath.Join(dir, strconv.Itoa(n)), p, 0o644); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkStat(b *testing.B) {
	name := filepath.Join(mounted(b), "f")
	if err := os.WriteFile(name, nil, 0o644); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := os.Stat(name); err != nil {
			b.Fatal(err)
		}
	}
}
