package block

import (
	"context"
	"fmt"

	"github.com/koinon/koinon/internal/sys"
)

// Store keeps blocks. Methods may be called concurrently. Every error is a
// *sys.Error; Unavailable means that the store could not be reached or lacks a
// quorum and that the call may be repeated.
type Store interface {
	// Put keeps data, a whole block of 1 to sys.BlockSize bytes, under key. A
	// nil error means that later Gets find it; that it survives a crash is
	// promised only after Sync. Putting the same bytes again is fine, other
	// bytes are refused with Exist. A key that was deleted is refused with
	// Stale by the stores that remember. NoSpace means what it says, and Gets
	// go on. The store does not use data after Put has returned.
	Put(ctx context.Context, key sys.BlockKey, data []byte) error
	// Get fills dst with the block's bytes from off on. It is Invalid when
	// the block does not hold len(dst) bytes there, NotExist when there is no
	// such block, Corrupt when no copy matches its checksums. After an error
	// the content of dst is undefined.
	Get(ctx context.Context, key sys.BlockKey, off int, dst []byte) error
	// Read is Get of n bytes into memory of the store, which the caller gives
	// back by Release: bytes that come over a network need not be copied.
	Read(ctx context.Context, key sys.BlockKey, off, n int) (Buffer, error)
	// Delete removes blocks for ever. Keys that do not exist are fine. An
	// error may come after some keys are gone: repeat the call.
	Delete(ctx context.Context, keys []sys.BlockKey) error
	// Sync returns when everything Put for the slices before the call is on
	// stable storage, on a write quorum where there are several copies.
	Sync(ctx context.Context, slices []sys.SliceID) error
	// List returns blocks of one placement group in key order, those after
	// the key after (the zero key: from the first), at most limit. Fewer than
	// limit means that there are no more.
	List(ctx context.Context, pg sys.PG, after sys.BlockKey, limit int) ([]Info, error)
	// Usage returns what is used and what is left.
	Usage(ctx context.Context) (Usage, error)
}

// ListMax is the most blocks that one List returns, whatever its limit says.
const ListMax = 10_000

// Info describes one block.
type Info struct {
	Key sys.BlockKey
	// Size is in bytes.
	Size int
	// Lacks says what is missing of a block that is not whole, where the store
	// looks for that; "" for nothing.
	Lacks string
}

// Usage says how full a store is. Sizes are in bytes. A store of several nodes
// adds up its nodes, so it counts every copy.
type Usage struct {
	// Total is the capacity for blocks and whatever else shares the disks;
	// 0 when the store does not know.
	Total uint64
	// Free is what can still be put.
	Free uint64
	// Used is what the live blocks occupy, headers and padding included.
	Used uint64
	// Dead is what deleted blocks still occupy until compaction.
	Dead uint64
	// Blocks and Deleted count live keys and remembered deleted ones.
	Blocks, Deleted uint64
}

// Add adds o to u.
func (u *Usage) Add(o Usage) {
	u.Total += o.Total
	u.Free += o.Free
	u.Used += o.Used
	u.Dead += o.Dead
	u.Blocks += o.Blocks
	u.Deleted += o.Deleted
}

// CheckPut returns an Invalid error when key and data are nothing that a store
// may be asked to put.
func CheckPut(op sys.Op, key sys.BlockKey, data []byte) error {
	if len(data) < 1 || len(data) > sys.BlockSize {
		return sys.E(op, sys.Invalid, Subject(key),
			fmt.Sprintf("a block holds 1 to %d bytes, not %d", sys.BlockSize, len(data)))
	}
	if key.Slice == 0 {
		return sys.E(op, sys.Invalid, Subject(key), "slice 0 is a hole and has no blocks")
	}
	return nil
}

// CheckRange returns an Invalid error when a block of size bytes does not hold
// n bytes from off on.
func CheckRange(op sys.Op, key sys.BlockKey, size, off, n int) error {
	if off < 0 || n < 0 || off > size || n > size-off {
		return sys.E(op, sys.Invalid, Subject(key),
			fmt.Sprintf("bytes %d+%d of a block of %d", off, n, size))
	}
	return nil
}

// Subject names a block in an error.
func Subject(key sys.BlockKey) sys.Subject { return sys.Subject("block " + key.String()) }

// ListLimit bounds the limit of a List call to 1..ListMax; a limit of zero or
// less asks for ListMax.
func ListLimit(limit int) int {
	if limit <= 0 || limit > ListMax {
		return ListMax
	}
	return limit
}

// Known is one key that an engine has an opinion of.
type Known struct {
	Key sys.BlockKey
	// Size is in bytes; 0 when the key is deleted.
	Size int
}

// Deleted reports whether the key was deleted.
func (k Known) Deleted() bool { return k.Size == 0 }

// Digest sums up a run of keys: two engines with equal digests hold the same
// keys and have deleted the same keys, but for an accident of 2^-64.
type Digest struct {
	// Count is how many keys there are, deleted ones too.
	Count uint64
	// Hash is the sum of a hash of each.
	Hash uint64
}
