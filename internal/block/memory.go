package block

import (
	"bytes"
	"context"
	"slices"
	"sync"

	"github.com/koinon/koinon/internal/sys"
)

// Memory is a Store in memory, for tests and for trees that need not outlive
// their process. It is bounded only by the memory there is.
type Memory struct {
	mu      sync.RWMutex
	blocks  map[sys.BlockKey]memoryBlock
	deleted map[sys.BlockKey]struct{}
	used    uint64
}

type memoryBlock struct {
	data []byte
	sums Sums
}

var (
	_ Store = (*Memory)(nil)
)

// NewMemory returns an empty store.
func NewMemory() *Memory {
	return &Memory{blocks: make(map[sys.BlockKey]memoryBlock), deleted: make(map[sys.BlockKey]struct{})}
}

// Put implements Store.
func (m *Memory) Put(ctx context.Context, key sys.BlockKey, data []byte) error {
	const op = sys.Op("memory.Put")
	if err := CheckPut(op, key, data); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, gone := m.deleted[key]; gone {
		return sys.E(op, sys.Stale, Subject(key), "deleted before")
	}
	if old, ok := m.blocks[key]; ok {
		if !bytes.Equal(old.data, data) {
			return sys.E(op, sys.Exist, Subject(key), "holds other bytes")
		}
		return nil
	}
	m.blocks[key] = memoryBlock{data: bytes.Clone(data), sums: SumData(data)}
	m.used += uint64(len(data))
	return nil
}

// Get implements Store.
func (m *Memory) Get(_ context.Context, key sys.BlockKey, off int, dst []byte) error {
	const op = sys.Op("memory.Get")
	m.mu.RLock()
	b, ok := m.blocks[key]
	m.mu.RUnlock()
	if !ok {
		return sys.E(op, sys.NotExist, Subject(key))
	}
	if err := CheckRange(op, key, len(b.data), off, len(dst)); err != nil {
		return err
	}
	for page, end := Pages(off, len(dst)); page < end; page++ {
		held := b.data[page*sys.PageSize : min((page+1)*sys.PageSize, len(b.data))]
		if Checksum(held) != b.sums[page] {
			return sys.E(op, sys.Corrupt, Subject(key))
		}
	}
	copy(dst, b.data[off:])
	return nil
}

// Read implements Store.
func (m *Memory) Read(ctx context.Context, key sys.BlockKey, off, n int) (Buffer, error) {
	return ReadFresh(ctx, m, key, off, n)
}

// Delete implements Store.
func (m *Memory) Delete(ctx context.Context, keys []sys.BlockKey) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, key := range keys {
		m.used -= uint64(len(m.blocks[key].data))
		delete(m.blocks, key)
		m.deleted[key] = struct{}{}
	}
	return nil
}

// Sync implements Store; memory is as stable as it gets.
func (m *Memory) Sync(ctx context.Context, slices []sys.SliceID) error { return nil }

// List implements Store.
func (m *Memory) List(ctx context.Context, pg sys.PG, after sys.BlockKey, limit int) ([]Info, error) {
	var infos []Info
	m.mu.RLock()
	for key, b := range m.blocks {
		if key.Slice.PG() == pg && after.Less(key) {
			infos = append(infos, Info{Key: key, Size: len(b.data)})
		}
	}
	m.mu.RUnlock()
	slices.SortFunc(infos, func(a, b Info) int { return CompareKeys(a.Key, b.Key) })
	return infos[:min(len(infos), ListLimit(limit))], nil
}

// Usage implements Store; a store in memory does not know its capacity.
func (m *Memory) Usage(ctx context.Context) (Usage, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return Usage{Used: m.used, Blocks: uint64(len(m.blocks)), Deleted: uint64(len(m.deleted))}, nil
}

// Damage flips one bit of a block that the store holds, so that tests can see
// what their readers do. It reports whether there is such a byte.
func (m *Memory) Damage(key sys.BlockKey, off int) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	b, ok := m.blocks[key]
	if !ok || off < 0 || off >= len(b.data) {
		return false
	}
	// Readers may still copy from the old slice.
	b.data = bytes.Clone(b.data)
	b.data[off] ^= 0x10
	m.blocks[key] = b
	return true
}

// CompareKeys orders keys by slice, then index, for package slices.
func CompareKeys(a, b sys.BlockKey) int {
	switch {
	case a.Less(b):
		return -1
	case b.Less(a):
		return 1
	}
	return 0
}
