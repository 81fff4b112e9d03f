package vfs

import (
	"context"
	"testing"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// TestSeek: data is what was written, holes are what was not or was punched,
// in memory and after a flush, within a chunk and across many.
func TestSeek(t *testing.T) {
	const none = ^uint64(0)
	const c = uint64(sys.ChunkSize)
	fs, _, _ := newFS(t, Options{})
	f := create(t, fs, "f", 0)
	defer f.Release()
	write(t, f, make([]byte, 1000), 0)
	write(t, f, make([]byte, 300_000), 100_000)
	write(t, f, make([]byte, 2000), int64(3*c-1000))
	write(t, f, make([]byte, 10), int64(700*c+5))
	must(t, f.Truncate(t.Context(), int64(701*c)))
	must(t, fs.Fallocate(t.Context(), Root(), &metapb.Fallocate{
		Ino: uint64(f.Ino()), Off: 200_000, Len: 50_000, KeepSize: true, Zero: true}))
	write(t, f, make([]byte, 100), 210_000)
	for _, s := range []struct{ off, data, hole uint64 }{
		{0, 0, 1000}, {999, 999, 1000}, {1000, 100_000, 1000},
		{150_000, 150_000, 200_000}, {200_000, 210_000, 200_000}, {210_050, 210_050, 210_100},
		{210_100, 250_000, 210_100}, {399_999, 399_999, 400_000},
		{400_000, 3*c - 1000, 400_000}, {3*c - 1, 3*c - 1, 3*c + 1000}, {3 * c, 3 * c, 3*c + 1000},
		{3*c + 1000, 700*c + 5, 3*c + 1000}, {500 * c, 700*c + 5, 500 * c},
		{700*c + 5, 700*c + 5, 700*c + 15}, {700*c + 15, none, 700*c + 15}, {701*c - 1, none, 701*c - 1},
		{701 * c, none, none}, {800 * c, none, none}, {1 << 62, none, none},
	} {
		for what, seek := range map[string]func(context.Context, sys.Ino, uint64) (uint64, bool, error){
			"data": fs.SeekData, "hole": fs.SeekHole} {
			at, found, err := seek(t.Context(), f.Ino(), s.off)
			must(t, err)
			if !found {
				at = none
			}
			want := s.data
			if what == "hole" {
				want = s.hole
			}
			if at != want {
				t.Errorf("%s from %d: found %d, expected %d", what, s.off, at, want)
			}
		}
	}
	small := create(t, fs, "small", 0)
	defer small.Release()
	write(t, small, []byte("inline"), 0)
	if at, found, err := fs.SeekHole(t.Context(), small.Ino(), 2); err != nil || !found || at != 6 {
		t.Errorf("hole of a small file: %d, %v, %v, expected 6", at, found, err)
	}
}
