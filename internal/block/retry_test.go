package block_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/sys"
)

// flaky fails a number of puts with a kind of error.
type flaky struct {
	block.Store
	kind  sys.Kind
	fails int
	tries int
}

func (f *flaky) Put(ctx context.Context, key sys.BlockKey, data []byte) error {
	if f.tries++; f.tries <= f.fails {
		return sys.E(sys.Op("flaky.Put"), f.kind, "away")
	}
	return f.Store.Put(ctx, key, data)
}

func TestRetried(t *testing.T) {
	key := sys.BlockKey{Slice: sys.NewSliceID(1, 0)}
	for _, tc := range []struct {
		name     string
		kind     sys.Kind
		fails    int
		patience time.Duration
		tries    int
		want     bool // that it succeeds
	}{
		{"nodes that come back are no error", sys.Unavailable, 3, time.Minute, 4, true},
		{"nor is a node given up because of the others", sys.Interrupted, 1, time.Minute, 2, true},
		{"no space is told at once", sys.NoSpace, 1, time.Minute, 1, false},
		{"patience ends", sys.Unavailable, 1 << 30, 0, 1, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := &flaky{Store: block.NewMemory(), kind: tc.kind, fails: tc.fails}
			err := block.Retried(f, tc.patience).Put(context.Background(), key, []byte("x"))
			if (err == nil) != tc.want || f.tries != tc.tries {
				t.Errorf("%d tries, error %v", f.tries, err)
			}
			if err != nil && !sys.Is(err, tc.kind) {
				t.Errorf("the error lost its kind: %v", err)
			}
		})
	}
	t.Run("a cancelled caller does not wait", func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		f := &flaky{Store: block.NewMemory(), kind: sys.Unavailable, fails: 1 << 30}
		if err := block.Retried(f, time.Hour).Put(ctx, key, []byte("x")); err == nil || f.tries != 1 {
			t.Errorf("%d tries, error %v", f.tries, err)
		}
	})
	t.Run("a try that hangs is given up", func(t *testing.T) {
		for _, c := range []struct {
			fails int
			want  string // what the error says
		}{{0, "no answer within 50ms"}, {1, "away"}} {
			h := &hanging{fails: c.fails}
			err := block.Retried(h, 50*time.Millisecond).Put(context.Background(), key, []byte("x"))
			if !sys.Is(err, sys.Unavailable) || !strings.Contains(err.Error(), c.want) || h.tries != c.fails+1 {
				t.Errorf("%d tries, error %v", h.tries, err)
			}
		}
	})
}

// hanging fails a number of puts, and then answers none.
type hanging struct {
	block.Store
	fails, tries int
}

func (h *hanging) Put(ctx context.Context, _ sys.BlockKey, _ []byte) error {
	if h.tries++; h.tries <= h.fails {
		return sys.E(sys.Op("hanging.Put"), sys.Unavailable, "away")
	}
	<-ctx.Done()
	return sys.E(sys.Op("hanging.Put"), sys.Interrupted, ctx.Err())
}
