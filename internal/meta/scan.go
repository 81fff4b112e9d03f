package meta

import (
	"math"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// scanCost bounds one answer to ScanInodes, in bytes as they are estimated.
const scanCost = 1 << 20

// scanInodes lists inodes with their chunks, and rows that belong to no inode
// where the engine can find them. An answer ends early rather than grow large.
func (s *step) scanInodes(q *metapb.ScanInodes, ans *metapb.Answer) error {
	if !s.root() {
		return refuse(sys.Permission, sys.Ino(q.After), "only root lists all inodes")
	}
	limit := int(min(q.Limit, ScanMax))
	if limit == 0 {
		limit = ScanMax
	}
	ans.End = true
	err := s.tx.ScanInodes(sys.Ino(q.After), func(a *metapb.Attr) bool {
		if len(ans.Inodes) == limit {
			ans.End = false
			return false
		}
		ans.Inodes = append(ans.Inodes, &metapb.Inode{Attr: a})
		return true
	})
	if err != nil {
		return err
	}
	if err := s.addOwners(sys.Ino(q.After), limit, ans); err != nil {
		return err
	}
	from, budget := q.FromChunk, scanCost
	for i, in := range ans.Inodes {
		next, err := s.addChunks(in, from, &budget)
		if err != nil {
			return err
		}
		from = 0
		if next != 0 || budget <= 0 && i+1 < len(ans.Inodes) {
			ans.Inodes, ans.NextChunk, ans.End = ans.Inodes[:i+1], next, false
			break
		}
	}
	return nil
}

// addOwners adds numbers that have rows but no inode.
func (s *step) addOwners(after sys.Ino, limit int, ans *metapb.Answer) error {
	owners, ok := s.tx.(OwnerScanner)
	if !ok {
		return nil
	}
	last := sys.Ino(math.MaxUint64)
	if !ans.End {
		last = sys.Ino(ans.Inodes[len(ans.Inodes)-1].Attr.Ino)
	}
	for i := 0; ; {
		ino, found, err := owners.NextOwner(after)
		if err != nil {
			return err
		}
		if !found || ino > last {
			break
		}
		after = ino
		for i < len(ans.Inodes) && sys.Ino(ans.Inodes[i].Attr.Ino) < ino {
			i++
		}
		if i < len(ans.Inodes) && sys.Ino(ans.Inodes[i].Attr.Ino) == ino {
			continue
		}
		orphan := &metapb.Inode{Attr: &metapb.Attr{Ino: uint64(ino)}}
		ans.Inodes = append(ans.Inodes[:i], append([]*metapb.Inode{orphan}, ans.Inodes[i:]...)...)
		if i >= limit {
			break
		}
	}
	if len(ans.Inodes) > limit {
		ans.Inodes, ans.End = ans.Inodes[:limit], false
	}
	return nil
}

// addChunks adds the chunks of an inode from number from on while the budget
// lasts, one at least. It returns where to go on, 0 when all are there.
func (s *step) addChunks(in *metapb.Inode, from uint32, budget *int) (next uint32, err error) {
	err = s.tx.ScanChunks(sys.Ino(in.Attr.Ino), from, func(n uint32, c *metapb.Chunk) bool {
		if *budget <= 0 && len(in.Chunks) > 0 {
			next = n
			return false
		}
		*budget -= 64 + len(c.Inline) + 32*(len(c.Slices)+len(c.Ranges))
		in.Chunks = append(in.Chunks, &metapb.NumberedChunk{Number: n, Chunk: c})
		return true
	})
	return next, err
}
