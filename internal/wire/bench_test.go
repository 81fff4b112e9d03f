package wire_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/koinon/koinon/internal/wire"
)

func BenchmarkCall(b *testing.B) {
	for _, kind := range []struct {
		name string
		m    wire.Method
	}{{"goroutine", mEcho}, {"fast", mFast}} {
		for _, callers := range []int{1, 8, 64} {
			b.Run(fmt.Sprintf("%s/callers=%d", kind.name, callers), func(b *testing.B) {
				c := newWorld(b, nil).client(nil)
				benchCalls(b, c, kind.m, callers, make([]byte, 200), nil)
			})
		}
	}
}

func benchCalls(b *testing.B, c *wire.Client, m wire.Method, callers int, header, payload []byte) {
	b.Helper()
	ctx := context.Background()
	if r, err := c.Call(ctx, m, header, payload); err != nil {
		b.Fatal(err)
	} else {
		r.Release()
	}
	b.ReportAllocs()
	b.ResetTimer()
	var left atomic.Int64
	left.Store(int64(b.N))
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				r, err := c.Call(ctx, m, header, payload)
				if err != nil {
					b.Error(err)
					return
				}
				r.Release()
			}
		})
	}
	wg.Wait()
}

func BenchmarkBulk(b *testing.B) {
	const size = 4 << 20
	for _, callers := range []int{1, 4} {
		b.Run(fmt.Sprintf("put/callers=%d", callers), func(b *testing.B) {
			w := newWorld(b, nil)
			b.SetBytes(size)
			benchCalls(b, w.client(nil), mSink, callers, make([]byte, 20), make([]byte, size))
		})
		b.Run(fmt.Sprintf("get/callers=%d", callers), func(b *testing.B) {
			w := newWorld(b, nil)
			b.SetBytes(size)
			benchCalls(b, w.client(nil), mZero, callers, make([]byte, 20), nil)
		})
	}
}
