package vfs

import (
	"fmt"
	"sync"

	"github.com/koinon/koinon/internal/sys"
)

// Buffers come in classes of 4 KiB times a power of four, up to a block.
const classes = 6

const classMin = 4 << 10

// pool keeps the buffers that nobody uses. It may be used concurrently.
type pool struct {
	buffers [classes]sync.Pool // of *byteBox
	boxes   sync.Pool          // of *byteBox, empty: so that giving back allocates nothing
}

type byteBox struct{ b []byte }

func classSize(c int) int { return classMin << (2 * c) }

// classOf returns the smallest class whose buffers hold n bytes.
func classOf(n int) int {
	for c := range classes {
		if n <= classSize(c) {
			return c
		}
	}
	panic(fmt.Sprintf("vfs: buffer size: expected at most %d, found %d", sys.BlockSize, n))
}

// take returns a buffer whose length is the size of its class. Its content is
// undefined.
func (p *pool) take(c int) []byte {
	box, ok := p.buffers[c].Get().(*byteBox)
	if !ok {
		return make([]byte, classSize(c))
	}
	b := box.b
	box.b = nil
	p.boxes.Put(box)
	return b
}

// give takes back what take gave; nil is fine.
func (p *pool) give(b []byte) {
	if b == nil {
		return
	}
	box, ok := p.boxes.Get().(*byteBox)
	if !ok {
		box = &byteBox{}
	}
	box.b = b
	p.buffers[classOf(len(b))].Put(box)
}
