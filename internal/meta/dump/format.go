// Package dump writes the tree's metadata to a stream and reads it back, from
// any engine and into any other. docs/formats/dump.md has the bytes.
//
// [Write] streams the rows of a view, so that a dump is the tree at one point.
// [Verify] reads a dump through and changes nothing; [Load] fills an empty
// tree. None needs more memory than a few MiB, however large the tree is.
package dump

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/sys"
)

// magic begins every dump; its last two bytes are the version of the format.
const magic = "KOINON DUMP\n\x00\x01"

const (
	// frameMax is the largest frame, in bytes.
	frameMax = 4 << 20
	// windowMax bounds what the decompression remembers, in bytes.
	windowMax = 4 << 20
	// headLen is the length and the checksum before each frame.
	headLen = 8
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func bad(cause string) error { return sys.E(sys.Op("dump.Read"), sys.Corrupt, cause) }

// writer writes frames.
type writer struct {
	z      *zstd.Encoder
	sum    hash.Hash
	frames uint64
	rows   uint64
	buf    []byte
}

func newWriter(w io.Writer, h *metapb.DumpHeader) (*writer, error) {
	if _, err := io.WriteString(w, magic); err != nil {
		return nil, err
	}
	z, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20))
	if err != nil {
		return nil, err
	}
	d := &writer{z: z, sum: sha256.New()}
	if err := d.frame(&metapb.DumpFrame{Part: &metapb.DumpFrame_Header{Header: h}}); err != nil {
		return nil, err
	}
	return d, z.Flush() // so the header of a dump that is cut off can be read
}

func (d *writer) frame(f *metapb.DumpFrame) error {
	f.Number = d.frames
	d.frames++
	d.buf = pb.Append(append(d.buf[:0], make([]byte, headLen)...), f)
	body := d.buf[headLen:]
	if len(body) > frameMax {
		return sys.E(sys.Op("dump.Write"), sys.TooBig, fmt.Sprintf("a frame of %d bytes", len(body)))
	}
	binary.BigEndian.PutUint32(d.buf, uint32(len(body)))
	binary.BigEndian.PutUint32(d.buf[4:], crc32.Checksum(body, castagnoli))
	d.sum.Write(d.buf)
	_, err := d.z.Write(d.buf)
	return err
}

func (d *writer) add(rows []*metapb.Row) error {
	d.rows += uint64(len(rows))
	return d.frame(&metapb.DumpFrame{Part: &metapb.DumpFrame_Rows{Rows: &metapb.DumpRows{Rows: rows}}})
}

// end writes the last frame.
func (d *writer) end() error {
	end := &metapb.DumpEnd{Rows: d.rows, Sha256: d.sum.Sum(nil)}
	if err := d.frame(&metapb.DumpFrame{Part: &metapb.DumpFrame_End{End: end}}); err != nil {
		return err
	}
	return d.z.Close()
}

// reader reads frames and checks all of them.
type reader struct {
	r      io.Reader
	z      *zstd.Decoder
	sum    hash.Hash
	frames uint64
	rows   uint64
	buf    bytes.Buffer
}

// newReader reads up to the header. Close it.
func newReader(r io.Reader) (_ *reader, _ *metapb.DumpHeader, err error) {
	start := make([]byte, len(magic))
	if n, err := io.ReadFull(r, start); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, nil, err
	} else if start = start[:n]; string(start) != magic {
		if n == len(magic) && string(start[:n-2]) == magic[:n-2] {
			return nil, nil, sys.E(sys.Op("dump.Read"), sys.NotSupported,
				fmt.Sprintf("format %d, this koinon knows %d: install a newer one", binary.BigEndian.Uint16(start[n-2:]), magic[n-1]))
		}
		return nil, nil, bad("it was not written by koinon meta dump")
	}
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(windowMax))
	if err != nil {
		return nil, nil, err
	}
	d := &reader{r: r, z: z, sum: sha256.New()}
	f, err := d.frame()
	if err == nil && f.GetHeader() == nil {
		err = bad("it does not begin with its header")
	}
	if err != nil {
		z.Close()
		return nil, nil, err
	}
	return d, f.GetHeader(), nil
}

func (d *reader) close() { d.z.Close() }

// frame reads one frame. io.ErrUnexpectedEOF, wrapped, is the end of a dump that
// was cut off.
func (d *reader) frame() (*metapb.DumpFrame, error) {
	var head [headLen]byte
	if _, err := io.ReadFull(d.z, head[:]); err != nil {
		return nil, broken(err)
	}
	n, sum := binary.BigEndian.Uint32(head[:]), binary.BigEndian.Uint32(head[4:])
	if n > frameMax {
		return nil, bad(fmt.Sprintf("frame %d claims %d bytes, %d are the most", d.frames, n, frameMax))
	}
	d.buf.Reset() // grows with what is there, not with what is claimed
	if _, err := io.CopyN(&d.buf, d.z, int64(n)); err != nil {
		return nil, broken(err)
	}
	body := d.buf.Bytes()
	if crc32.Checksum(body, castagnoli) != sum {
		return nil, bad(fmt.Sprintf("the checksum of frame %d is wrong: the dump was altered", d.frames))
	}
	f := &metapb.DumpFrame{}
	if err := pb.Unmarshal(body, f); err != nil {
		return nil, bad(fmt.Sprintf("frame %d does not decode", d.frames))
	}
	if f.Number != d.frames {
		return nil, bad(fmt.Sprintf("expected frame %d, found %d", d.frames, f.Number))
	}
	d.frames++
	if f.GetEnd() == nil {
		d.sum.Write(head[:])
		d.sum.Write(body)
	}
	return f, nil
}

func broken(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return sys.E(sys.Op("dump.Read"), sys.Corrupt, fmt.Errorf("the dump is cut off: %w", io.ErrUnexpectedEOF))
	}
	return sys.E(sys.Op("dump.Read"), sys.Corrupt, fmt.Errorf("the dump was altered, or cannot be read: %w", err))
}

// next returns the next rows, nil after the last of a sound dump.
func (d *reader) next() ([]*metapb.Row, error) {
	f, err := d.frame()
	if err != nil {
		return nil, err
	}
	if rows := f.GetRows(); len(rows.GetRows()) > 0 {
		d.rows += uint64(len(rows.Rows))
		return rows.Rows, nil
	}
	end := f.GetEnd()
	if end == nil {
		return nil, bad(fmt.Sprintf("frame %d has neither rows nor the end", f.Number))
	}
	if end.Rows != d.rows || !bytes.Equal(end.Sha256, d.sum.Sum(nil)) {
		return nil, bad("its rows are not those that were written: the dump was altered")
	}
	if n, err := d.z.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		return nil, bad("something follows its end")
	}
	return nil, nil
}
