package blockcopy_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/block/blocktest"
	"github.com/koinon/koinon/internal/blockcopy"
	"github.com/koinon/koinon/internal/sys"
)

const groups = 4

// filled is a store with n blocks of several sizes.
func filled(t *testing.T, n uint64) *block.Memory {
	t.Helper()
	s := block.NewMemory()
	for i := range n {
		key := blocktest.Key(i+1, sys.PG(i%groups), uint32(i%3))
		if err := s.Put(t.Context(), key, blocktest.Bytes(key, int(1+i*9999))); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

// same fails the test unless b holds what a holds.
func same(t *testing.T, a, b block.Store) {
	t.Helper()
	for pg := range sys.PG(groups) {
		infos, err := a.List(t.Context(), pg, sys.BlockKey{}, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range infos {
			x, y := make([]byte, i.Size), make([]byte, i.Size)
			if err := a.Get(t.Context(), i.Key, 0, x); err != nil {
				t.Fatal(err)
			}
			if err := b.Get(t.Context(), i.Key, 0, y); err != nil || !bytes.Equal(x, y) {
				t.Fatalf("%v: %v", i.Key, err)
			}
		}
	}
}

// failing refuses puts after some.
type failing struct {
	block.Store
	left atomic.Int64
}

func (f *failing) Put(ctx context.Context, key sys.BlockKey, data []byte) error {
	if f.left.Add(-1) < 0 {
		return sys.E(sys.Op("failing.Put"), sys.NoSpace)
	}
	return f.Store.Put(ctx, key, data)
}

func TestGoesOnWhereItWas(t *testing.T) {
	from, to := filled(t, 50), block.NewMemory()
	f := &failing{Store: to}
	f.left.Store(20)
	r, err := blockcopy.Run(t.Context(), from, f, blockcopy.Options{Groups: groups})
	if !sys.Is(err, sys.NoSpace) || r.Copied != 20 {
		t.Fatalf("%+v, %v", r, err)
	}
	var told int64
	r, err = blockcopy.Run(t.Context(), from, to, blockcopy.Options{Groups: groups, Progress: func(_ blockcopy.Report, n int64) { told += n }})
	if err != nil || r.Copied != 30 || r.There != 20 || told != 50+9999*49*50/2 {
		t.Fatalf("%+v, %v, told of %d bytes", r, err, told)
	}
	same(t, from, to)
}

// Nothing wrong is taken for a copy.
func TestWrongBytes(t *testing.T) {
	key := blocktest.Key(1, 0, 0)
	for name, c := range map[string]struct {
		prepare func(from, to *block.Memory)
		verify  bool
		kind    sys.Kind
	}{
		"longer":         {func(_, to *block.Memory) { must(t, to.Put(t.Context(), key, []byte("xy"))) }, false, sys.Exist},
		"shorter":        {func(_, to *block.Memory) { must(t, to.Put(t.Context(), blocktest.Key(2, 1, 1), []byte("xy"))) }, false, sys.Exist},
		"other bytes":    {func(_, to *block.Memory) { must(t, to.Put(t.Context(), key, []byte("?"))) }, true, sys.Exist},
		"damaged source": {func(from, _ *block.Memory) { from.Damage(key, 0) }, false, sys.Corrupt},
		"damaged copy": {func(_, to *block.Memory) {
			must(t, to.Put(t.Context(), key, blocktest.Bytes(key, 1)))
			to.Damage(key, 0)
		}, false, sys.Corrupt},
	} {
		t.Run(name, func(t *testing.T) {
			from, to := filled(t, 5), block.NewMemory()
			c.prepare(from, to)
			_, err := blockcopy.Run(t.Context(), from, to, blockcopy.Options{Groups: groups, Verify: c.verify})
			if !sys.Is(err, c.kind) {
				t.Errorf("expected %v, found %v", c.kind, err)
			}
		})
	}
}

// One block that is damaged in the source is told, and all others are copied.
func TestGoesOnPastDamage(t *testing.T) {
	from, to := filled(t, 50), block.NewMemory()
	key := blocktest.Key(7, 2, 0)
	from.Damage(key, 0)
	for _, there := range []int64{0, 49} {
		r, err := blockcopy.Run(t.Context(), from, to, blockcopy.Options{Groups: groups})
		if !errors.Is(err, blockcopy.ErrDamaged) || !strings.Contains(err.Error(), string(block.Subject(key))) ||
			r.Damaged != 1 || r.Copied != 49-there || r.There != there {
			t.Errorf("%+v, %v", r, err)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
