package redis

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/bits"
	"sync"

	"github.com/redis/go-redis/v9"

	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/sys"
)

// Put implements block.Store: one round trip sets the pages, and then the sums.
// What is there is never overwritten.
func (s *Store) Put(ctx context.Context, key sys.BlockKey, data []byte) error {
	if err := block.CheckPut("redis.Put", key, data); err != nil {
		return err
	}
	sums := sumsOf(key, data)
	fresh, err := s.set(ctx, key, data, sums, true)
	if err != nil || fresh {
		return err
	}
	if err := s.same(ctx, key, sums); err != nil || s.place.replicas == 0 {
		return err
	}
	// An earlier try may not have waited for the replicas.
	_, err = s.set(ctx, key, data, sums, false)
	return err
}

// fill adds to a pipeline what makes a block, and returns the command that does
// so in the end.
func (s *Store) fill(ctx context.Context, p redis.Pipeliner, key sys.BlockKey, data, sums []byte, nx bool) *redis.Cmd {
	verb := "hset"
	if nx {
		verb = "hsetnx"
	}
	name := s.key(key)
	for n := range block.PageCount(len(data)) {
		p.Do(ctx, verb, name, field(n), page(data, n))
	}
	return p.Do(ctx, verb, name, sumsField, sums)
}

// same is nil when the block that is there already has the sums that it should
// have.
func (s *Store) same(ctx context.Context, key sys.BlockKey, want []byte) error {
	const op = sys.Op("redis.Put")
	got, err := s.client.HGet(ctx, s.key(key), sumsField).Bytes()
	switch {
	case errors.Is(err, redis.Nil):
		return sys.E(op, sys.Unavailable, block.Subject(key), "it was deleted at this moment")
	case err != nil:
		return s.explain(ctx, op, block.Subject(key), err)
	case !bytes.Equal(got, want):
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
// range, and the sums.
func (s *Store) Read(ctx context.Context, key sys.BlockKey, off, n int) (block.Buffer, error) {
	const op = sys.Op("redis.Get")
	if err := block.CheckRange(op, key, sys.BlockSize, off, n); err != nil {
		return block.Buffer{}, err
	}
	first, end := block.Pages(off, n)
	if n == 0 {
		return block.Buffer{}, s.read(ctx, key, off, n, first, end, nil)
	}
	buf := s.memory.take((end - first) * sys.PageSize)
	if err := s.read(ctx, key, off, n, first, end, buf); err != nil {
		s.memory.give(buf)
		return block.Buffer{}, err
	}
	off -= first * sys.PageSize
	return block.Buffer{Data: buf[off : off+n : off+n], Memory: cap(buf), Free: func() { s.memory.give(buf) }}, nil
}

// read fills buf with the pages from first up to end, as far as the block goes,
// and checks them.
func (s *Store) read(ctx context.Context, key sys.BlockKey, off, n, first, end int, buf []byte) error {
	const op = sys.Op("redis.Get")
	subject, name := block.Subject(key), s.key(key)
	pipe := s.client.Pipeline()
	sumsCmd := pipe.HGet(ctx, name, sumsField)
	pages := make([]*redis.ZeroCopyStringCmd, 0, end-first)
	for p := first; p < end; p++ {
		cmd := redis.NewZeroCopyStringCmd(ctx, page(buf, p-first), "hget", name, field(p))
		_ = pipe.Process(ctx, cmd) // its error comes from Exec
		pages = append(pages, cmd)
	}
	if _, err := pipe.Exec(ctx); err != nil && !errors.Is(err, redis.Nil) {
		return s.explain(ctx, op, subject, err)
	}
	raw, err := sumsCmd.Bytes()
	if errors.Is(err, redis.Nil) {
		return sys.E(op, sys.NotExist, subject)
	} else if err != nil {
		return s.explain(ctx, op, subject, err)
	}
	size, sums, err := parseSums(raw, key)
	if err != nil {
		return err
	}
	if err := block.CheckRange(op, key, size, off, n); err != nil {
		return err
	}
	for i, cmd := range pages {
		got, err := cmd.Result()
		if err != nil && !errors.Is(err, redis.Nil) {
			return s.explain(ctx, op, subject, err)
		}
		p := first + i
		if errors.Is(err, redis.Nil) {
			return sys.E(op, sys.Corrupt, subject, fmt.Sprintf("page %d of %d is missing: it was never put whole", p, block.PageCount(size)))
		}
		if want := min(size-p*sys.PageSize, sys.PageSize); err != nil || got != want || block.Checksum(cmd.Bytes()) != sums[p] {
			return sys.E(op, sys.Corrupt, subject, fmt.Sprintf("page %d does not match the checksum of its writer", p))
		}
	}
	return nil
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
