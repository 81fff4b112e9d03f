package wire

import "sync"

// slack makes the large classes hold a header of the usual size beside a round
// payload.
const slack = 4 << 10

// classSizes are the sizes that buffers come in, in bytes.
var classSizes = [...]int{512, 4 << 10, 32 << 10, 128<<10 + slack, segmentSize + slack, 1<<20 + slack, 4<<20 + slack, MaxFrame}

// buffer is memory from a pool. It has one owner, who releases it once.
type buffer struct {
	b     []byte // full length of its class
	class int
	pool  *bufferPool
}

// release gives the buffer back. Its bytes must not be used afterwards.
func (b *buffer) release() {
	if b != nil {
		b.pool.classes[b.class].Put(b)
	}
}

// bufferPool keeps buffers between messages. Safe for concurrent use.
type bufferPool struct {
	classes [len(classSizes)]sync.Pool
}

// get returns a buffer of at least n bytes, nil for 0. Its content is
// arbitrary. n over MaxFrame panics.
func (p *bufferPool) get(n int) *buffer {
	if n == 0 {
		return nil
	}
	for c, size := range classSizes {
		if n > size {
			continue
		}
		if b, ok := p.classes[c].Get().(*buffer); ok {
			return b
		}
		return &buffer{b: make([]byte, size), class: c, pool: p}
	}
	panic("wire: expected a buffer of at most MaxFrame bytes, found a larger one asked for")
}
