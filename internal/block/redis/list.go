package redis

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/sys"
)

// scanCount is about how many keys one SCAN looks at.
const scanCount = 1000

// scan tells fn the keys of all blocks, some of them twice, in no order. It is
// Unavailable when a server was restarted or replaced meanwhile, so that keys
// may be missing.
func (s *Store) scan(ctx context.Context, fn func(keys []string) error) error {
	const op = sys.Op("redis.List")
	masters, err := s.masters(ctx)
	if err != nil {
		return err
	}
	for _, m := range masters {
		before, err := runID(ctx, m)
		if err != nil {
			return s.explain(ctx, op, "", err)
		}
		for cursor, more := uint64(0), true; more; more = cursor != 0 {
			var keys []string
			keys, cursor, err = m.Scan(ctx, cursor, s.blocks+"*", scanCount).Result()
			if err != nil {
				return s.explain(ctx, op, "", err)
			}
			if len(keys) == 0 {
				continue
			}
			if err := fn(keys); err != nil {
				return err
			}
		}
		after, err := runID(ctx, m)
		if err != nil {
			return s.explain(ctx, op, "", err)
		}
		if before != after {
			return sys.E(op, sys.Unavailable, sys.Subject(m.Options().Addr), "the server was restarted while its keys were listed")
		}
	}
	return nil
}

// runID is another one after each start of a server.
func runID(ctx context.Context, c *redis.Client) (string, error) {
	info, err := info(ctx, c, "server")
	return info["run_id"], err
}

// info asks for a section of INFO.
func info(ctx context.Context, c *redis.Client, section string) (map[string]string, error) {
	text, err := c.Info(ctx, section).Result()
	if err != nil {
		return nil, err
	}
	m := make(map[string]string)
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimRight(line, "\r\n"), ":"); ok {
			m[name] = value
		}
	}
	return m, nil
}

// Walk tells fn all blocks that are there from the beginning to the end of the
// call, in no order, some of them twice. Others may be told or not. fn is
// called from one goroutine.
func (s *Store) Walk(ctx context.Context, fn func([]block.Info) error) error {
	return s.scan(ctx, func(keys []string) error {
		infos, err := s.measure(ctx, keys)
		if err != nil {
			return err
		}
		return fn(infos)
	})
}

// measure asks how large blocks are. Those that are gone, or that nobody has
// put whole, are left out.
func (s *Store) measure(ctx context.Context, keys []string) ([]block.Info, error) {
	sums := make([]*redis.StringCmd, len(keys))
	_, err := s.client.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i, key := range keys {
			sums[i] = p.HGet(ctx, key, sumsField)
		}
		return nil
	})
	if err != nil && !errors.Is(err, redis.Nil) {
		return nil, s.explain(ctx, "redis.List", "", err)
	}
	infos := make([]block.Info, 0, len(keys))
	for i, text := range keys {
		key, ok := s.parseKey(text)
		if !ok {
			return nil, keyError(text)
		}
		raw, err := sums[i].Bytes()
		if errors.Is(err, redis.Nil) {
			continue
		} else if err != nil {
			return nil, s.explain(ctx, "redis.List", block.Subject(key), err)
		}
		size, _, err := parseSums(raw, key)
		if err != nil {
			return nil, err
		}
		infos = append(infos, block.Info{Key: key, Size: size})
	}
	return infos, nil
}

// WalkWhole is Walk, and also tells which blocks lack pages: those that koinon
// of old put into a Redis that was full.
func (s *Store) WalkWhole(ctx context.Context, fn func([]block.Info) error) error {
	return s.Walk(ctx, func(infos []block.Info) error {
		for part := range slices.Chunk(infos, wholeAtOnce) {
			if err := s.lacking(ctx, part); err != nil {
				return err
			}
		}
		return fn(infos)
	})
}

// wholeAtOnce is of how many blocks the pages are asked for in one round trip.
const wholeAtOnce = 64

// lacking sets what blocks lack.
func (s *Store) lacking(ctx context.Context, infos []block.Info) error {
	pages := make([][]*redis.BoolCmd, len(infos))
	_, err := s.client.Pipelined(ctx, func(p redis.Pipeliner) error {
		for i, info := range infos {
			for n := range block.PageCount(info.Size) {
				pages[i] = append(pages[i], p.HExists(ctx, s.key(info.Key), field(n)))
			}
		}
		return nil
	})
	if err != nil {
		return s.explain(ctx, "redis.List", "", err)
	}
	for i, cmds := range pages {
		first, lacks := 0, 0
		for n, cmd := range cmds {
			if !cmd.Val() {
				if lacks++; lacks == 1 {
					first = n
				}
			}
		}
		if lacks > 0 {
			infos[i].Lacks = fmt.Sprintf("%d of its %d pages, page %d first", lacks, len(cmds), first)
		}
	}
	return nil
}

// Has reports whether a block is there.
func (s *Store) Has(ctx context.Context, key sys.BlockKey) (bool, error) {
	has, err := s.client.HExists(ctx, s.key(key), sumsField).Result()
	return has, s.explain(ctx, "redis.Has", block.Subject(key), err)
}

// List implements block.Store. Each call looks at all keys of the servers,
// since Redis keeps them in no order: whoever wants all blocks uses Walk.
func (s *Store) List(ctx context.Context, pg sys.PG, after sys.BlockKey, limit int) ([]block.Info, error) {
	limit = block.ListLimit(limit)
	var least []block.Info // sorted from time to time, never more than some limits
	tidy := func() {
		slices.SortFunc(least, func(a, b block.Info) int { return block.CompareKeys(a.Key, b.Key) })
		least = slices.CompactFunc(least, func(a, b block.Info) bool { return a.Key == b.Key })
		least = least[:min(len(least), limit)]
	}
	err := s.Walk(ctx, func(infos []block.Info) error {
		for _, i := range infos {
			if i.Key.Slice.PG() == pg && after.Less(i.Key) {
				least = append(least, i)
			}
		}
		if len(least) > limit+4*scanCount {
			tidy()
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	tidy()
	return least, nil
}

// Usage implements block.Store: the memory of the masters. What other data
// there is in the database counts too.
func (s *Store) Usage(ctx context.Context) (block.Usage, error) {
	const op = sys.Op("redis.Usage")
	masters, err := s.masters(ctx)
	if err != nil {
		return block.Usage{}, err
	}
	var all block.Usage
	for _, m := range masters {
		i, err := info(ctx, m, "memory")
		if err != nil {
			return block.Usage{}, s.explain(ctx, op, "", err)
		}
		keys, err := m.DBSize(ctx).Result()
		if err != nil {
			return block.Usage{}, s.explain(ctx, op, "", err)
		}
		number := func(name string) uint64 {
			n, err := strconv.ParseUint(i[name], 10, 64)
			if err != nil {
				return 0 // a server that does not tell
			}
			return n
		}
		u := block.Usage{Total: number("maxmemory"), Used: number("used_memory"), Blocks: uint64(keys)}
		if u.Total == 0 { // then the machine is the limit
			u.Total = number("total_system_memory")
		}
		u.Free = u.Total - min(u.Used, u.Total)
		all.Add(u)
	}
	return all, nil
}
