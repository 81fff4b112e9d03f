package dump

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"runtime"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// memory is a tree in memory as a Target.
type memory struct{ *meta.Memory }

func (m memory) Load(ctx context.Context, l *metapb.Load) (*metapb.Result, error) {
	return m.Do(ctx, &metapb.Command{Op: &metapb.Command_Load{Load: l}})
}

// sample is the dump of a tree with a few files.
func sample(tb testing.TB) []byte {
	tb.Helper()
	m := meta.NewMemory()
	for i := range 50 {
		_, err := m.Do(context.Background(), &metapb.Command{Op: &metapb.Command_Mknod{Mknod: &metapb.Mknod{
			Parent: uint64(sys.RootIno), Name: fmt.Appendf(nil, "f%d", i), Type: uint32(sys.TypeRegular), Mode: 0o644,
			Body: &metapb.Commit{Inline: bytes.Repeat([]byte{byte(i)}, 100*i+1)},
		}}})
		if err != nil {
			tb.Fatal(err)
		}
	}
	var b bytes.Buffer
	if _, err := Write(context.Background(), m, &metapb.DumpHeader{Cluster: "test", Pgs: 4}, &b, func(uint64) {}); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

// Every dump that is cut off anywhere is refused, and so is one of which a byte
// is another, unless the rows are the same to the last byte: their SHA-256 says.
func TestDamage(t *testing.T) {
	good := sample(t)
	whole, err := Verify(bytes.NewReader(good))
	if err != nil {
		t.Fatal(err)
	}
	for n := range good {
		if _, err := Verify(bytes.NewReader(good[:n])); !sys.Is(err, sys.Corrupt) {
			t.Fatalf("cut off at %d of %d bytes: expected damage, found %v", n, len(good), err)
		}
		altered := bytes.Clone(good)
		altered[n] ^= 0x40
		sum, err := Verify(bytes.NewReader(altered))
		if err == nil && *sum == *whole {
			continue // a bit of the compression that changes no byte of the rows
		}
		if err == nil || !sys.Is(err, sys.Corrupt) && !sys.Is(err, sys.NotSupported) {
			t.Fatalf("byte %d altered: expected damage, found %v", n, err)
		}
	}
	if _, err := Verify(bytes.NewReader(append(bytes.Clone(good), good...))); !sys.Is(err, sys.Corrupt) {
		t.Fatalf("twice in a row: expected damage, found %v", err)
	}
}

// Of a dump that is cut off, however small, the header can be read: what loads it
// from a pipe says of whom it was, and that the load was interrupted.
func TestHeaderOfHalf(t *testing.T) {
	half := sample(t)
	half = half[:len(half)-100]
	m := meta.NewMemory(meta.Unformatted())
	var h *metapb.DumpHeader
	_, err := Load(context.Background(), bytes.NewReader(half), memory{m}, Options{Check: func(found *metapb.DumpHeader) error { h = found; return nil }})
	if !sys.Is(err, sys.Corrupt) || h.GetCluster() != "test" {
		t.Fatalf("expected the header and then the missing end, found %v, %v", h, err)
	}
	if _, err := m.Query(context.Background(), &metapb.Query{Op: &metapb.Query_GetAttr{GetAttr: &metapb.GetAttr{Ino: 1}}}); err == nil {
		t.Fatal("expected a tree that is missing")
	}
}

// A dump of a newer format is told from damage.
func TestNewerFormat(t *testing.T) {
	b := sample(t)
	binary.BigEndian.PutUint16(b[len(magic)-2:], 2)
	if _, err := Verify(bytes.NewReader(b)); !sys.Is(err, sys.NotSupported) {
		t.Fatalf("expected a newer format, found %v", err)
	}
}

// What a dump refuses by its header is not begun.
func TestCheckRefuses(t *testing.T) {
	m := meta.NewMemory()
	no := sys.E(sys.Invalid, "no")
	_, err := Load(context.Background(), bytes.NewReader(sample(t)), memory{m}, Options{Check: func(*metapb.DumpHeader) error { return no }})
	if err != no {
		t.Fatalf("expected the refusal, found %v", err)
	}
	if _, err := m.Query(context.Background(), &metapb.Query{Op: &metapb.Query_GetAttr{GetAttr: &metapb.GetAttr{Ino: 1}}}); err != nil {
		t.Fatalf("expected the tree to be there, found %v", err)
	}
}

// Rows that no engine keeps are an answer, and the tree stays missing.
func TestBadRows(t *testing.T) {
	for _, bad := range []*metapb.Row{
		{},
		{Row: &metapb.Row_Inode{Inode: &metapb.Attr{}}},
		{Row: &metapb.Row_Entry{Entry: &metapb.EntryRow{Parent: 1, Name: []byte("a/b"), Dentry: &metapb.Dentry{Ino: 9, Cookie: 99}}}},
		{Row: &metapb.Row_Entry{Entry: &metapb.EntryRow{Parent: 1, Name: []byte("f1"), Dentry: &metapb.Dentry{Ino: 9, Cookie: 99}}}},
		{Row: &metapb.Row_Entry{Entry: &metapb.EntryRow{Parent: 1, Name: []byte("new"), Dentry: &metapb.Dentry{Ino: 9}}}},
		{Row: &metapb.Row_Chunk{Chunk: &metapb.ChunkRow{Ino: 9}}},
		{Row: &metapb.Row_Xattrs{Xattrs: &metapb.XattrsRow{Ino: 9}}},
		{Row: &metapb.Row_Counter{Counter: &metapb.CounterRow{Counter: uint32(meta.CounterMoves), Value: 9}}},
		{Row: &metapb.Row_Counter{Counter: &metapb.CounterRow{Counter: 1<<8 + 1, Value: 9}}},
	} {
		d, _, err := newReader(bytes.NewReader(sample(t)))
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		w, err := newWriter(&b, &metapb.DumpHeader{})
		if err != nil {
			t.Fatal(err)
		}
		for {
			rows, err := d.next()
			if err != nil {
				t.Fatal(err)
			}
			if rows == nil {
				break
			}
			if err := w.add(rows); err != nil {
				t.Fatal(err)
			}
		}
		d.close()
		if err := w.add([]*metapb.Row{bad}); err != nil {
			t.Fatal(err)
		}
		if err := w.end(); err != nil {
			t.Fatal(err)
		}
		m := meta.NewMemory(meta.Unformatted())
		if _, err := Load(context.Background(), bytes.NewReader(b.Bytes()), memory{m}, Options{}); !sys.Is(err, sys.Corrupt) {
			t.Errorf("%v: expected it to be refused, found %v", bad, err)
		}
	}
}

// packed is a dump of which the frames are given as they are before
// compression.
func packed(frames []byte) []byte {
	var b bytes.Buffer
	b.WriteString(magic)
	z, err := zstd.NewWriter(&b, zstd.WithEncoderConcurrency(1))
	if err != nil {
		panic(err)
	}
	_, werr := z.Write(frames)
	if err := z.Close(); err != nil || werr != nil {
		panic(err)
	}
	return b.Bytes()
}

// FuzzRead gives the reader any bytes, compressed and not: it may refuse them,
// and takes little memory to do so.
func FuzzRead(f *testing.F) {
	good := sample(f)
	z, err := zstd.NewReader(bytes.NewReader(good[len(magic):]))
	if err != nil {
		f.Fatal(err)
	}
	frames, err := io.ReadAll(z)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good, false)
	f.Add(frames, true)
	f.Add(frames[:len(frames)/2], true)
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0}, true)
	f.Fuzz(func(t *testing.T, b []byte, framed bool) {
		if framed {
			b = packed(b)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := Verify(bytes.NewReader(b))
		runtime.ReadMemStats(&after)
		if took := after.TotalAlloc - before.TotalAlloc; took > 64<<20+64*uint64(len(b)) {
			t.Fatalf("%d bytes took %d of memory", len(b), took)
		}
		if err == nil {
			m := meta.NewMemory(meta.Unformatted())
			if _, err := Load(context.Background(), bytes.NewReader(b), memory{m}, Options{}); err != nil && sys.KindOf(err) == sys.Other {
				t.Fatalf("expected a load or a refusal, found %v", err)
			}
		}
	})
}
