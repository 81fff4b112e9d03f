package redis

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strconv"
	"strings"

	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/sys"
)

// A value is a block's bytes and then its trailer, all numbers little endian:
//
//	sums   4 bytes for each page: its CRC32C
//	size   4 bytes: of the block
//	check  4 bytes: CRC32C of sums, size and the block's name
//	magic  4 bytes
//
// The bytes come first, so that a range of a block is that range of the value.
const (
	fixedLen   = 12
	trailerMax = sys.BlockSize/sys.PageSize*4 + fixedLen
	magic      = "KBv1"
)

// trailerLen is how long the trailer of a block of size bytes is.
func trailerLen(size int) int { return 4*block.PageCount(size) + fixedLen }

// sizeOf is the size of the block whose value is n bytes long; ok is false when
// there is none.
func sizeOf(n int) (size int, ok bool) {
	pages := (n - fixedLen + sys.PageSize + 3) / (sys.PageSize + 4)
	size = n - fixedLen - 4*pages
	return size, size > 0 && size <= sys.BlockSize && block.PageCount(size) == pages
}

// appendTrailer appends the trailer of a block that holds data to dst.
func appendTrailer(dst []byte, key sys.BlockKey, data []byte) []byte {
	start := len(dst)
	for rest := data; len(rest) > 0; rest = rest[min(len(rest), sys.PageSize):] {
		dst = binary.LittleEndian.AppendUint32(dst, block.Checksum(rest[:min(len(rest), sys.PageSize)]))
	}
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(data)))
	dst = binary.LittleEndian.AppendUint32(dst, checkOf(dst[start:], key))
	return append(dst, magic...)
}

// checkOf covers the block's name, so that a value under another's key is told.
func checkOf(sumsAndSize []byte, key sys.BlockKey) uint32 {
	return block.Checksum(append(bytes.Clone(sumsAndSize), key.String()...))
}

// trailer is what the end of a value says.
type trailer struct {
	size int
	sums block.Sums
}

// parseTrailer reads the end of a value: its last trailerMax bytes, or all of
// it.
func parseTrailer(end []byte, key sys.BlockKey) (*trailer, error) {
	bad := func(what string) (*trailer, error) {
		return nil, sys.E(sys.Op("redis.Get"), sys.Corrupt, block.Subject(key), "the end of its value "+what)
	}
	if len(end) < fixedLen || string(end[len(end)-len(magic):]) != magic {
		return bad("is not that of a block")
	}
	check := binary.LittleEndian.Uint32(end[len(end)-8:])
	t := &trailer{size: int(binary.LittleEndian.Uint32(end[len(end)-fixedLen:]))}
	if t.size < 1 || t.size > sys.BlockSize || len(end) < trailerLen(t.size) {
		return bad("names an impossible size")
	}
	covered := end[len(end)-trailerLen(t.size) : len(end)-8]
	if checkOf(covered, key) != check {
		return bad("does not match its checksum")
	}
	for i := range block.PageCount(t.size) {
		t.sums = append(t.sums, binary.LittleEndian.Uint32(covered[4*i:]))
	}
	return t, nil
}

// match reports whether data are the pages from first on, whole pages but for
// the block's last.
func (t *trailer) match(first int, data []byte) bool {
	pages := block.PageCount(len(data))
	return first+pages <= len(t.sums) && t.sums[first:first+pages].Match(data)
}

// prefix begins the keys of a cluster. Names hold no braces, so the blocks of a
// Redis Cluster spread over its slots.
func prefix(cluster string) string { return "koinon:" + cluster + ":" }

// key is where a block is.
func (s *Store) key(k sys.BlockKey) string { return s.blocks + k.String() }

// parseKey is key's reverse.
func (s *Store) parseKey(key string) (k sys.BlockKey, ok bool) {
	name, ok := strings.CutPrefix(key, s.blocks+"s")
	if !ok {
		return k, false
	}
	seq, rest, _ := strings.Cut(name, ".")
	pg, index, _ := strings.Cut(rest, "/")
	a, errA := strconv.ParseUint(seq, 10, 64-sys.PGBits)
	b, errB := strconv.ParseUint(pg, 10, sys.PGBits)
	c, errC := strconv.ParseUint(index, 10, 32)
	k = sys.BlockKey{Slice: sys.NewSliceID(a, sys.PG(b)), Index: uint32(c)}
	return k, errA == nil && errB == nil && errC == nil && s.key(k) == key
}

func keyError(key string) error {
	return sys.E(sys.Op("redis.List"), sys.Corrupt, sys.Subject(key), fmt.Sprintf("no key of a block: what is it doing under koinon's prefix? Rename it, or delete it with `redis-cli UNLINK %s`", key))
}
