package vfs

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"

	"github.com/koinon/koinon/internal/meta/metapb"
)

// TestResolveMatchesBytes lays random slices over each other and compares the
// resolved layout, byte by byte, with an array that they were copied into.
func TestResolveMatchesBytes(t *testing.T) {
	const size = 200
	rapid.Check(t, func(t *rapid.T) {
		var c metapb.Chunk
		model := make([]byte, size)
		content := map[uint64][]byte{}
		if n := rapid.IntRange(0, 60).Draw(t, "inline"); n > 0 {
			c.Inline = bytes.Repeat([]byte{250}, n)
			copy(model, c.Inline)
		}
		for k := range rapid.IntRange(0, 12).Draw(t, "slices") {
			at := rapid.IntRange(0, size-1).Draw(t, "at")
			n := rapid.IntRange(1, size-at).Draw(t, "n")
			off := rapid.IntRange(0, 20).Draw(t, "off")
			s := &metapb.Slice{At: uint32(at), Len: uint32(n), Off: uint32(off), SliceLen: uint32(off + n)}
			if rapid.IntRange(0, 4).Draw(t, "hole") > 0 {
				s.Slice = uint64(k + 1)
				data := make([]byte, off+n)
				for j := range data {
					data[j] = byte(k*31 + j + 1)
				}
				content[s.Slice] = data
				copy(model[at:], data[off:])
			} else {
				clear(model[at : at+n])
			}
			c.Slices = append(c.Slices, s)
		}
		l := resolve(&c)
		got := make([]byte, size)
		last := uint32(0)
		for _, s := range l.segs {
			if s.at < last || s.n == 0 {
				t.Fatalf("segments out of order or empty: %+v", l.segs)
			}
			last = s.end()
			if s.slice == 0 {
				copy(got[s.at:s.end()], c.Inline[s.off:])
			} else {
				copy(got[s.at:s.end()], content[uint64(s.slice)][s.off:])
			}
		}
		if !bytes.Equal(got, model) {
			t.Fatalf("resolved to\n%v\nexpected\n%v", got, model)
		}
	})
}
