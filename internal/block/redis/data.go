package redis

import (
	"bytes"
	"context"
	"errors"
	"math/bits"
	"sync"

	"github.com/redis/go-redis/v9"

	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/sys"
)

// Put implements block.Store: one SET of the block and its checksums.
func (s *Store) Put(ctx context.Context, key sys.BlockKey, data []byte) error {
	const op = sys.Op("redis.Put")
	if err := block.CheckPut(op, key, data); err != nil {
		return err
	}
	buf := s.memory.take(len(data) + trailerLen(len(data)))
	defer s.memory.give(buf)
	value := appendTrailer(append(buf[:0], data...), key, data)
	fresh, err := s.set(ctx, key, value)
	if err != nil || fresh {
		return err
	}
	if err := s.same(ctx, key, value[len(data):]); err != nil {
		return err
	}
	return s.again(ctx, key, value)
}

// same is nil when the block that is there already has the trailer that it
// should have.
func (s *Store) same(ctx context.Context, key sys.BlockKey, want []byte) error {
	const op = sys.Op("redis.Put")
	end, err := s.client.GetRange(ctx, s.key(key), int64(-len(want)), -1).Bytes()
	switch {
	case err != nil:
		return s.explain(ctx, op, block.Subject(key), err)
	case len(end) == 0:
		return sys.E(op, sys.Unavailable, block.Subject(key), "it was deleted at this moment")
	case !bytes.Equal(end, want):
		return sys.E(op, sys.Exist, block.Subject(key), "holds other bytes")
	}
	return nil
}

// Get implements block.Store.
func (s *Store) Get(ctx context.Context, key sys.BlockKey, off int, dst []byte) error {
	b, err := s.Read(ctx, key, off, len(dst))
	if err != nil {
		return err
	}
	copy(dst, b.Data)
	b.Release()
	return nil
}

// Read implements block.Store. One round trip brings the pages that hold the
// range, and the end of the value, which has their checksums.
func (s *Store) Read(ctx context.Context, key sys.BlockKey, off, n int) (block.Buffer, error) {
	const op = sys.Op("redis.Get")
	if err := block.CheckRange(op, key, sys.BlockSize, off, n); err != nil {
		return block.Buffer{}, err
	}
	first, end := block.Pages(off, n)
	start, stop := first*sys.PageSize, end*sys.PageSize
	buf := s.memory.take(stop - start + 2) // the library wants room for the line's end
	b, err := s.read(ctx, key, off, n, start, stop, first, buf)
	if err != nil {
		s.memory.give(buf)
		return block.Buffer{}, err
	}
	return b, nil
}

// read is Read of the pages in [start, stop) into buf.
func (s *Store) read(ctx context.Context, key sys.BlockKey, off, n, start, stop, first int, buf []byte) (block.Buffer, error) {
	const op = sys.Op("redis.Get")
	subject := block.Subject(key)
	pipe := s.client.Pipeline()
	end := pipe.GetRange(ctx, s.key(key), -trailerMax, -1)
	var pages *redis.ZeroCopyStringCmd
	if n > 0 {
		pages = redis.NewZeroCopyStringCmd(ctx, buf[:stop-start+2], "getrange", s.key(key), start, stop-1)
		_ = pipe.Process(ctx, pages) // its error comes from Exec
	}
	if _, err := pipe.Exec(ctx); err != nil {
		return block.Buffer{}, s.explain(ctx, op, subject, err)
	}
	raw, err := end.Bytes()
	if err != nil {
		return block.Buffer{}, s.explain(ctx, op, subject, err)
	}
	if len(raw) == 0 {
		return block.Buffer{}, sys.E(op, sys.NotExist, subject)
	}
	t, err := parseTrailer(raw, key)
	if err != nil {
		return block.Buffer{}, err
	}
	if err := block.CheckRange(op, key, t.size, off, n); err != nil {
		return block.Buffer{}, err
	}
	free := func() { s.memory.give(buf) }
	if n == 0 {
		return block.Buffer{Data: buf[:0], Memory: cap(buf), Free: free}, nil
	}
	got := pages.Bytes()
	if want := min(stop, t.size) - start; len(got) < want {
		return block.Buffer{}, sys.E(op, sys.Corrupt, subject, "its value is too short")
	} else if got = got[:want]; !t.match(first, got) {
		return block.Buffer{}, sys.E(op, sys.Corrupt, subject, "its bytes do not match the checksums of their writer")
	}
	return block.Buffer{Data: got[off-start : off-start+n], Memory: cap(buf), Free: free}, nil
}

// unlinks is how many keys one round trip deletes.
const unlinks = 500

// Delete implements block.Store.
func (s *Store) Delete(ctx context.Context, keys []sys.BlockKey) error {
	for len(keys) > 0 {
		n := min(len(keys), unlinks)
		_, err := s.client.Pipelined(ctx, func(p redis.Pipeliner) error {
			for _, key := range keys[:n] {
				p.Unlink(ctx, s.key(key))
			}
			return nil
		})
		if err != nil {
			return s.explain(ctx, "redis.Delete", "", err)
		}
		keys = keys[n:]
	}
	return nil
}

// Sync implements block.Store. There is nothing to wait for: a server with
// appendfsync always has synced a block before it has answered Put, and the
// others offer no way to ask for it (WAITAOF speaks only of the connection's
// own writes, from version 7.2 on).
func (s *Store) Sync(context.Context, []sys.SliceID) error { return nil }

// memory recycles buffers, by powers of two from minClass on.
type memory struct{ pools [16]sync.Pool }

const minClass = 12 // 4 KiB

func classOf(n int) int { return max(bits.Len(uint(max(n, 1)-1)), minClass) - minClass }

// take returns n bytes of which nothing is known.
func (m *memory) take(n int) []byte {
	c := classOf(n)
	if p, ok := m.pools[c].Get().(*[]byte); ok {
		return (*p)[:n]
	}
	return make([]byte, n, 1<<(c+minClass))
}

func (m *memory) give(b []byte) {
	b = b[:cap(b)]
	m.pools[classOf(len(b))].Put(&b)
}

var errEnough = errors.New("enough was found")
