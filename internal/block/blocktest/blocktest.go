// Package blocktest is the conformance suite of block.Store: an engine is done
// when it passes.
package blocktest

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/sys"
)

// Options say what an engine offers beyond the interface.
type Options struct {
	// Tombstones: a deleted key is refused with Stale for ever.
	Tombstones bool
	// Damage flips a bit of every stored copy of a byte of a block; nil when
	// the engine cannot.
	Damage func(t *testing.T, s block.Store, key sys.BlockKey, off int)
}

// Run runs the suite. open returns an empty store, which the suite does not
// close: open registers its own cleanup.
func Run(t *testing.T, open func(t *testing.T) block.Store, options ...Options) {
	var opt Options
	if len(options) > 0 {
		opt = options[0]
	}
	cases := []struct {
		name string
		run  func(t *testing.T, s block.Store, opt Options)
	}{
		{"SizesAndRanges", testSizesAndRanges},
		{"RandomRanges", testRandomRanges},
		{"BadArguments", testBadArguments},
		{"Missing", testMissing},
		{"Immutable", testImmutable},
		{"CallerKeepsBuffer", testCallerKeepsBuffer},
		{"Delete", testDelete},
		{"Sync", testSync},
		{"List", testList},
		{"Usage", testUsage},
		{"Concurrent", testConcurrent},
		{"SamePutRaces", testSamePutRaces},
		{"Damage", testDamage},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { c.run(t, open(t), opt) })
	}
}

// Bytes returns n bytes that depend on key alone, so that a test can tell whose
// bytes it got.
func Bytes(key sys.BlockKey, n int) []byte {
	data := make([]byte, (n+7)/8*8)
	r := rand.NewPCG(uint64(key.Slice), uint64(key.Index)+1)
	for i := 0; i < len(data); i += 8 {
		v := r.Uint64()
		for j := range 8 {
			data[i+j] = byte(v >> (8 * j))
		}
	}
	return data[:n]
}

// Key returns the key of a block of slice seq in placement group pg.
func Key(seq uint64, pg sys.PG, index uint32) sys.BlockKey {
	return sys.BlockKey{Slice: sys.NewSliceID(seq, pg), Index: index}
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// put puts the Bytes of key and returns them.
func put(t *testing.T, s block.Store, key sys.BlockKey, n int) []byte {
	t.Helper()
	data := Bytes(key, n)
	if err := s.Put(testContext(t), key, data); err != nil {
		t.Fatalf("Put(%v, %d bytes): %v", key, n, err)
	}
	return data
}

// check reads n bytes from off on and compares.
func check(t *testing.T, s block.Store, key sys.BlockKey, want []byte, off, n int) {
	t.Helper()
	dst := bytes.Repeat([]byte{0xa5}, n)
	if err := s.Get(testContext(t), key, off, dst); err != nil {
		t.Fatalf("Get(%v, %d+%d): %v", key, off, n, err)
	}
	if !bytes.Equal(dst, want[off:off+n]) {
		t.Fatalf("Get(%v, %d+%d) returned other bytes", key, off, n)
	}
	b, err := s.Read(testContext(t), key, off, n)
	if err != nil || !bytes.Equal(b.Data, want[off:off+n]) || b.Memory < n {
		t.Fatalf("Read(%v, %d+%d) returned %d other bytes in %d of memory, %v", key, off, n, len(b.Data), b.Memory, err)
	}
	b.Release()
}

// refused demands that Get and Read of n bytes from off on fail with kind.
func refused(t *testing.T, what string, s block.Store, key sys.BlockKey, off, n int, kind sys.Kind) {
	t.Helper()
	if err := s.Get(testContext(t), key, off, make([]byte, max(n, 0))); !sys.Is(err, kind) {
		t.Fatalf("Get of %s: error %v, want kind %q", what, err, kind)
	}
	if b, err := s.Read(testContext(t), key, off, n); !sys.Is(err, kind) || b.Data != nil || b.Free != nil {
		t.Fatalf("Read of %s: %d bytes, error %v, want kind %q", what, len(b.Data), err, kind)
	}
}

func wantKind(t *testing.T, what string, err error, kind sys.Kind) {
	t.Helper()
	if !sys.Is(err, kind) {
		t.Fatalf("%s: error %v, want kind %q", what, err, kind)
	}
}

func testSizesAndRanges(t *testing.T, s block.Store, _ Options) {
	const page = sys.PageSize
	sizes := []int{1, 2, 511, 512, 513, 4096, page - 1, page, page + 1, 2*page - 1, 2 * page, 2*page + 1,
		1 << 20, 1<<20 + 7, sys.BlockSize - page - 1, sys.BlockSize - 1, sys.BlockSize}
	for i, size := range sizes {
		key := Key(uint64(i+1), 3, uint32(i))
		want := put(t, s, key, size)
		check(t, s, key, want, 0, size)
		check(t, s, key, want, 0, 1)
		check(t, s, key, want, size-1, 1)
		check(t, s, key, want, size, 0)
		check(t, s, key, want, 0, 0)
		for _, off := range []int{1, page - 1, page, page + 1, size / 2} {
			for _, n := range []int{0, 1, 4096, page - 1, page, page + 1, 2 * page} {
				if off+n <= size {
					check(t, s, key, want, off, n)
				}
			}
		}
	}
}

func testRandomRanges(t *testing.T, s block.Store, _ Options) {
	r := rand.New(rand.NewPCG(1, 2))
	key := Key(9, 7, 0)
	want := put(t, s, key, 777_777)
	for range 200 {
		off := r.IntN(len(want))
		check(t, s, key, want, off, r.IntN(len(want)-off+1))
	}
}

func testBadArguments(t *testing.T, s block.Store, _ Options) {
	ctx := testContext(t)
	wantKind(t, "Put of nothing", s.Put(ctx, Key(1, 0, 0), nil), sys.Invalid)
	wantKind(t, "Put of too much", s.Put(ctx, Key(1, 0, 0), make([]byte, sys.BlockSize+1)), sys.Invalid)
	wantKind(t, "Put into the hole", s.Put(ctx, sys.BlockKey{}, []byte("x")), sys.Invalid)
	key := Key(2, 0, 0)
	put(t, s, key, 100)
	for _, c := range []struct{ off, n int }{{0, 101}, {100, 1}, {101, 0}, {-1, 1}, {sys.BlockSize, 1}} {
		refused(t, fmt.Sprintf("%d+%d", c.off, c.n), s, key, c.off, c.n, sys.Invalid)
	}
	if b, err := s.Read(ctx, key, 0, -1); !sys.Is(err, sys.Invalid) || b.Data != nil {
		t.Fatalf("Read of less than nothing: %v", err)
	}
}

func testMissing(t *testing.T, s block.Store, _ Options) {
	put(t, s, Key(1, 0, 0), 10)
	refused(t, "another slice", s, Key(2, 0, 0), 0, 1, sys.NotExist)
	refused(t, "another index", s, Key(1, 0, 1), 0, 1, sys.NotExist)
	refused(t, "another group", s, Key(1, 1, 0), 0, 1, sys.NotExist)
}

func testImmutable(t *testing.T, s block.Store, _ Options) {
	ctx := testContext(t)
	key := Key(5, 1, 0)
	want := put(t, s, key, 100_000)
	put(t, s, key, 100_000)
	for _, other := range [][]byte{Bytes(Key(6, 1, 0), 100_000), want[:99_999], append(slices.Clone(want), 0)} {
		wantKind(t, "Put of other bytes", s.Put(ctx, key, other), sys.Exist)
	}
	check(t, s, key, want, 0, len(want))
}

func testCallerKeepsBuffer(t *testing.T, s block.Store, _ Options) {
	ctx := testContext(t)
	buf := make([]byte, 200_000)
	for i := range uint64(8) {
		copy(buf, Bytes(Key(i+1, 2, 0), len(buf)))
		if err := s.Put(ctx, Key(i+1, 2, 0), buf); err != nil {
			t.Fatal(err)
		}
		clear(buf)
	}
	for i := range uint64(8) {
		key := Key(i+1, 2, 0)
		check(t, s, key, Bytes(key, len(buf)), 0, len(buf))
	}
}

func testDelete(t *testing.T, s block.Store, opt Options) {
	ctx := testContext(t)
	gone, kept := Key(1, 4, 0), Key(1, 4, 1)
	put(t, s, gone, 70_000)
	want := put(t, s, kept, 70_000)
	for range 2 {
		if err := s.Delete(ctx, []sys.BlockKey{gone, Key(99, 4, 0)}); err != nil {
			t.Fatalf("Delete: %v", err)
		}
		wantKind(t, "Get after Delete", s.Get(ctx, gone, 0, make([]byte, 1)), sys.NotExist)
	}
	if err := s.Delete(ctx, nil); err != nil {
		t.Fatalf("Delete of nothing: %v", err)
	}
	check(t, s, kept, want, 0, len(want))
	infos, err := s.List(ctx, 4, sys.BlockKey{}, 0)
	if err != nil || len(infos) != 1 || infos[0].Key != kept {
		t.Fatalf("List after Delete: %v, %v, want only %v", infos, err, kept)
	}
	if opt.Tombstones {
		wantKind(t, "Put after Delete", s.Put(ctx, gone, Bytes(gone, 70_000)), sys.Stale)
		wantKind(t, "Put after Delete of a missing key", s.Put(ctx, Key(99, 4, 0), []byte("x")), sys.Stale)
	}
}

func testSync(t *testing.T, s block.Store, _ Options) {
	ctx := testContext(t)
	var ids []sys.SliceID
	for i := range uint64(5) {
		key := Key(i+1, sys.PG(i), 0)
		put(t, s, key, 5000)
		ids = append(ids, key.Slice)
	}
	for _, slices := range [][]sys.SliceID{nil, ids[:1], ids, append(ids, sys.NewSliceID(77, 3))} {
		if err := s.Sync(ctx, slices); err != nil {
			t.Fatalf("Sync(%v): %v", slices, err)
		}
	}
}

func testList(t *testing.T, s block.Store, _ Options) {
	ctx := testContext(t)
	var want []block.Info
	for _, seq := range rand.New(rand.NewPCG(3, 4)).Perm(40) {
		for pg := range sys.PG(2) {
			for index := range uint32(3) {
				key := Key(uint64(seq+1), pg, index)
				put(t, s, key, 10+seq)
				if pg == 1 {
					want = append(want, block.Info{Key: key, Size: 10 + seq})
				}
			}
		}
	}
	slices.SortFunc(want, func(a, b block.Info) int { return block.CompareKeys(a.Key, b.Key) })
	for _, limit := range []int{0, 1, 7, 60, 120, 121, 1 << 30} {
		var got []block.Info
		var after sys.BlockKey
		for {
			page, err := s.List(ctx, 1, after, limit)
			if err != nil {
				t.Fatalf("List(after %v, limit %d): %v", after, limit, err)
			}
			if limit > 0 && len(page) > limit {
				t.Fatalf("List with limit %d returned %d blocks", limit, len(page))
			}
			got = append(got, page...)
			if len(page) < block.ListLimit(limit) {
				break
			}
			after = page[len(page)-1].Key
		}
		if !slices.Equal(got, want) {
			t.Fatalf("paging by %d: %d blocks, want %d in key order", limit, len(got), len(want))
		}
	}
	if page, err := s.List(ctx, 55, sys.BlockKey{}, 0); err != nil || len(page) != 0 {
		t.Fatalf("List of an empty group: %v, %v", page, err)
	}
}

func testUsage(t *testing.T, s block.Store, _ Options) {
	ctx := testContext(t)
	for i := range uint32(4) {
		put(t, s, Key(1, 0, i), 100_000)
	}
	u, err := s.Usage(ctx)
	if err != nil || u.Used < 400_000 || u.Blocks < 4 {
		t.Fatalf("Usage after 4 blocks of 100000 bytes: %+v, %v", u, err)
	}
}

func testConcurrent(t *testing.T, s block.Store, _ Options) {
	ctx := testContext(t)
	const workers, each = 8, 12
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 5))
			for i := range each {
				key := Key(uint64(w*each+i+1), sys.PG(w), uint32(i))
				data := Bytes(key, 1+r.IntN(300_000))
				if err := s.Put(ctx, key, data); err != nil {
					t.Errorf("Put(%v): %v", key, err)
					return
				}
				if i%4 == 0 {
					if err := s.Sync(ctx, []sys.SliceID{key.Slice}); err != nil {
						t.Errorf("Sync(%v): %v", key.Slice, err)
					}
				}
				dst := make([]byte, len(data))
				if err := s.Get(ctx, key, 0, dst); err != nil || !bytes.Equal(dst, data) {
					t.Errorf("Get(%v): %v", key, err)
				}
				if i%5 == 4 {
					if err := s.Delete(ctx, []sys.BlockKey{key}); err != nil {
						t.Errorf("Delete(%v): %v", key, err)
					}
				}
			}
		})
	}
	wg.Wait()
}

func testSamePutRaces(t *testing.T, s block.Store, _ Options) {
	ctx := testContext(t)
	key := Key(8, 8, 8)
	data := Bytes(key, 123_456)
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			if err := s.Put(ctx, key, data); err != nil {
				t.Errorf("Put: %v", err)
			}
		})
	}
	wg.Wait()
	check(t, s, key, data, 0, len(data))
	if infos, err := s.List(ctx, 8, sys.BlockKey{}, 0); err != nil || len(infos) != 1 {
		t.Fatalf("List after racing Puts of one key: %v, %v", infos, err)
	}
}

func testDamage(t *testing.T, s block.Store, opt Options) {
	if opt.Damage == nil {
		return
	}
	key := Key(7, 2, 0)
	want := put(t, s, key, 4*sys.PageSize)
	opt.Damage(t, s, key, sys.PageSize+100)
	refused(t, "a damaged block", s, key, 0, len(want), sys.Corrupt)
	refused(t, "another byte of the damaged page", s, key, sys.PageSize, 1, sys.Corrupt)
	check(t, s, key, want, 0, sys.PageSize)
	check(t, s, key, want, 2*sys.PageSize, 2*sys.PageSize)
}
