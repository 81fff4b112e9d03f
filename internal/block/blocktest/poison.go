package blocktest

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/sys"
)

// Poison returns s with lent memory that turns to garbage when it is released,
// so that whoever reads it afterwards finds out.
func Poison(s block.Store) *Poisoned { return &Poisoned{Store: s} }

// Poisoned is what Poison returns.
type Poisoned struct {
	block.Store
	lent atomic.Int64
}

// Lent returns how many bytes of memory are lent and not released.
func (p *Poisoned) Lent() int64 { return p.lent.Load() }

// Read implements block.Store. The memory is larger than what is asked for, as
// that of a real store is. Releasing it twice panics.
func (p *Poisoned) Read(ctx context.Context, key sys.BlockKey, off, n int) (block.Buffer, error) {
	b, err := p.Store.Read(ctx, key, off, n)
	if err != nil {
		return b, err
	}
	data := append(make([]byte, 0, n+n/8+1), b.Data...)
	b.Release()
	size := int64(cap(data))
	p.lent.Add(size)
	var released atomic.Bool
	return block.Buffer{Data: data, Memory: cap(data), Free: func() {
		if released.Swap(true) {
			panic(fmt.Sprintf("blocktest: expected %v to be released once, found it released before", key))
		}
		for i := range data {
			data[i] = 0xdb
		}
		p.lent.Add(-size)
	}}, nil
}
