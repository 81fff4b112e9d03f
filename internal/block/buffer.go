package block

import (
	"context"

	"github.com/koinon/koinon/internal/sys"
)

// Buffer is memory that a Store has lent: bytes of a block. It has one owner,
// who may only read them.
type Buffer struct {
	// Data are the bytes, valid until Release.
	Data []byte
	// Memory is how many bytes the buffer keeps from other uses, at least
	// len(Data).
	Memory int
	// Free takes the memory back; nil leaves it to the garbage collector.
	Free func()
}

// Release gives the memory back and empties the buffer. Buffers that are not
// released are collected as garbage.
func (b *Buffer) Release() {
	free := b.Free
	*b = Buffer{}
	if free != nil {
		free()
	}
}

// getter is the part of a Store that fills memory of the caller.
type getter interface {
	Get(ctx context.Context, key sys.BlockKey, off int, dst []byte) error
}

// ReadFresh is Store.Read for a store that has no memory to lend: it gets the
// bytes into fresh memory.
func ReadFresh(ctx context.Context, s getter, key sys.BlockKey, off, n int) (Buffer, error) {
	if err := CheckRange("block.Read", key, sys.BlockSize, off, n); err != nil {
		return Buffer{}, err
	}
	data := make([]byte, n)
	if err := s.Get(ctx, key, off, data); err != nil {
		return Buffer{}, err
	}
	return Buffer{Data: data, Memory: n}, nil
}
