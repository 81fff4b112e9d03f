package vfs

import (
	"context"
	"sync"

	"github.com/koinon/koinon/internal/sys"
)

// budget bounds the memory of dirty bytes. Those who want more than there is
// wait in line; when nothing on its way out will free any, press is called.
// Some of what is used can be had at once, by reclaim.
type budget struct {
	press   func()        // must not block
	reclaim func(n int64) // gives at least n bytes if there are as many to reclaim

	mu      sync.Mutex
	limit   int64
	used    int64
	sending int64 // of used, what is on its way to the block store
	line    []*claim
}

type claim struct {
	n    int64
	done chan error // buffered
}

func newBudget(limit int64, press func(), reclaim func(n int64)) *budget {
	return &budget{limit: limit, press: press, reclaim: reclaim}
}

// try takes n bytes if they are free, or can be reclaimed, and nobody waits.
func (b *budget) try(n int64) bool {
	ok, lack := b.tryFree(n)
	if ok || lack == 0 {
		return ok
	}
	b.reclaim(lack)
	ok, _ = b.tryFree(n)
	return ok
}

// tryFree takes n bytes if they are free and nobody waits. lack is how many
// are not free.
func (b *budget) tryFree(n int64) (ok bool, lack int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.line) > 0 {
		return false, 0
	}
	if b.used+n > b.limit {
		return false, b.used + n - b.limit
	}
	b.used += n
	return true, 0
}

// plenty reports whether nobody waits.
func (b *budget) plenty() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.line) == 0
}

// take waits until n bytes are free and takes them. It fails when ctx ends or
// when nothing can be flushed, with the error of the flush.
func (b *budget) take(ctx context.Context, n int64) error {
	if b.try(n) {
		return nil
	}
	c := &claim{n: n, done: make(chan error, 1)}
	b.mu.Lock()
	b.line = append(b.line, c)
	b.grant()
	b.mu.Unlock()
	b.reclaim(n) // what became so between the try and now
	if b.stuck() {
		b.press()
	}
	select {
	case err := <-c.done:
		return err
	case <-ctx.Done():
	}
	b.mu.Lock()
	for k, other := range b.line {
		if other == c {
			b.line = append(b.line[:k], b.line[k+1:]...)
			b.mu.Unlock()
			return sys.E(sys.Op("vfs.WriteAt"), sys.Interrupted, ctx.Err())
		}
	}
	b.mu.Unlock()
	return <-c.done // granted or failed at the same moment
}

// force takes n bytes even when they exceed the limit, for what ends by
// freeing more.
func (b *budget) force(n int64) {
	b.mu.Lock()
	b.used += n
	b.mu.Unlock()
}

// give returns n bytes.
func (b *budget) give(n int64) {
	if n == 0 {
		return
	}
	b.mu.Lock()
	b.used -= n
	if b.used < 0 {
		panic("vfs: budget: expected used >= 0, found less")
	}
	b.grant()
	b.mu.Unlock()
}

// grant serves the line, in order, as far as there is room. b.mu is held.
func (b *budget) grant() {
	for len(b.line) > 0 && b.used+b.line[0].n <= b.limit {
		c := b.line[0]
		b.line = b.line[1:]
		b.used += c.n
		c.done <- nil
	}
}

// sent tells that delta bytes more are on their way out; negative when they
// arrived or failed.
func (b *budget) sent(delta int64) {
	b.mu.Lock()
	b.sending += delta
	press := len(b.line) > 0 && b.sending == 0
	b.mu.Unlock()
	if press {
		b.press()
	}
}

// stuck reports whether somebody waits and nothing is on its way out.
func (b *budget) stuck() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.line) > 0 && b.sending == 0
}

// fail gives everybody in the line err.
func (b *budget) fail(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range b.line {
		c.done <- err
	}
	b.line = nil
}
