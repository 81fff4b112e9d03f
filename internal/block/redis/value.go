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

// A block is a hash. Its pages are in the fields "0", "1", ...; the field
// sumsField is set last and makes it a block: all numbers little endian,
//
//	sums   4 bytes for each page: its CRC32C
//	size   4 bytes: of the block
//	check  4 bytes: CRC32C of sums, size and the block's name
//	magic  4 bytes
const (
	sumsField = "sums"
	fixedLen  = 12
	magic     = "KBv1"
)

// field is where a page is.
func field(page int) string { return strconv.Itoa(page) }

// page returns the bytes of a page of a block that holds data.
func page(data []byte, n int) []byte {
	return data[n*sys.PageSize : min((n+1)*sys.PageSize, len(data))]
}

// sumsOf is what sumsField holds for a block that holds data.
func sumsOf(key sys.BlockKey, data []byte) []byte {
	v := make([]byte, 0, 4*block.PageCount(len(data))+fixedLen)
	for n := range block.PageCount(len(data)) {
		v = binary.LittleEndian.AppendUint32(v, block.Checksum(page(data, n)))
	}
	v = binary.LittleEndian.AppendUint32(v, uint32(len(data)))
	v = binary.LittleEndian.AppendUint32(v, checkOf(v, key))
	return append(v, magic...)
}

// checkOf covers the block's name, so that a hash under another's key is told.
func checkOf(sumsAndSize []byte, key sys.BlockKey) uint32 {
	return block.Checksum(append(bytes.Clone(sumsAndSize), key.String()...))
}

// parseSums reads what sumsField holds.
func parseSums(v []byte, key sys.BlockKey) (size int, sums block.Sums, err error) {
	bad := func(what string) (int, block.Sums, error) {
		return 0, nil, sys.E(sys.Op("redis.Get"), sys.Corrupt, block.Subject(key), "its field "+sumsField+" "+what)
	}
	if len(v) < fixedLen || string(v[len(v)-len(magic):]) != magic {
		return bad("is not that of a block")
	}
	size = int(binary.LittleEndian.Uint32(v[len(v)-fixedLen:]))
	if size < 1 || size > sys.BlockSize || len(v) != 4*block.PageCount(size)+fixedLen {
		return bad("names an impossible size")
	}
	if checkOf(v[:len(v)-8], key) != binary.LittleEndian.Uint32(v[len(v)-8:]) {
		return bad("does not match its checksum")
	}
	for i := range block.PageCount(size) {
		sums = append(sums, binary.LittleEndian.Uint32(v[4*i:]))
	}
	return size, sums, nil
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
