package spread

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/koinon/koinon/internal/sys"
)

// ScrubberConfig configures a Scrubber. Self, Engine and Cluster are required;
// a zero value of the others means its default.
type ScrubberConfig struct {
	Self    sys.NodeID
	Engine  Engine
	Cluster Cluster
	// BytesPerSecond bounds what is read (default 16 MiB).
	BytesPerSecond int64
	// Every is the pause between two passes (default one day). The first one
	// begins when a 24th of it is over, so that a node that is restarted each day
	// is read as well.
	Every  time.Duration
	Logger *slog.Logger
}

// ScrubStatus is what scrubbing found, since the start.
type ScrubStatus struct {
	// Passes counts complete passes; Blocks and Bytes what was read.
	Passes, Blocks, Bytes uint64
	// Damaged blocks were found; Repaired of them were replaced from another
	// node.
	Damaged, Repaired uint64
	// Lost of those that the last complete pass found had no good copy anywhere.
	Lost uint64
}

// Scrubber reads every block of a node now and then and repairs from other
// nodes what does not match its checksums any more.
type Scrubber struct {
	cfg    ScrubberConfig
	fetch  *fetcher
	pace   pacer
	cancel context.CancelFunc
	work   sync.WaitGroup

	pass   sync.Mutex // held during a pass
	mu     sync.Mutex
	status ScrubStatus
}

// NewScrubber starts scrubbing. Close must be called.
func NewScrubber(cfg ScrubberConfig) *Scrubber {
	if cfg.BytesPerSecond == 0 {
		cfg.BytesPerSecond = 16 << 20
	}
	if cfg.Every == 0 {
		cfg.Every = 24 * time.Hour
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	b := &Scrubber{cfg: cfg, fetch: newFetcher(cfg.Self, cfg.Engine, cfg.Cluster)}
	b.pace.rate = cfg.BytesPerSecond
	ctx, cancel := context.WithCancel(context.Background())
	b.cancel = cancel
	b.work.Go(func() {
		for wait := cfg.Every / 24; sleep(ctx, wait) == nil; wait = cfg.Every {
			if err := b.Scrub(ctx); err != nil && ctx.Err() == nil {
				cfg.Logger.Warn("scrubbing stopped; it will begin again", "err", err)
			}
		}
	})
	return b
}

// Close ends scrubbing and waits for it.
func (b *Scrubber) Close() error {
	b.cancel()
	b.work.Wait()
	return nil
}

// Status returns what was found so far.
func (b *Scrubber) Status() ScrubStatus {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.status
}

// Scrub makes one pass now. Damage that cannot be repaired is logged and
// counted, and is no error.
func (b *Scrubber) Scrub(ctx context.Context) error {
	b.pass.Lock()
	defer b.pass.Unlock()
	before := b.Status()
	for _, pg := range b.cfg.Engine.Groups() {
		var after sys.BlockKey
		for {
			page, err := b.cfg.Engine.Knows(pg, after, keysMax)
			if err != nil {
				return err
			}
			for _, k := range page {
				if after = k.Key; k.Deleted() {
					continue
				}
				if err := b.block(ctx, k.Key, k.Size); err != nil {
					return err
				}
			}
			if len(page) < keysMax {
				break
			}
		}
	}
	b.mu.Lock()
	b.status.Passes++
	b.status.Lost = b.status.Damaged - before.Damaged - (b.status.Repaired - before.Repaired)
	b.mu.Unlock()
	return nil
}

// block checks one block.
func (b *Scrubber) block(ctx context.Context, key sys.BlockKey, size int) error {
	err := b.fetch.verify(ctx, key, size)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	b.mu.Lock()
	b.status.Blocks++
	b.status.Bytes += uint64(size)
	b.mu.Unlock()
	if sys.Is(err, sys.Corrupt) {
		repaired := false
		if t := b.cfg.Cluster.Table(); t != nil {
			_, rerr := b.fetch.fetch(ctx, key, b.fetch.sources(t, key.Slice.PG()), true)
			repaired = rerr == nil
			b.cfg.Logger.Warn("a block had rotted on disk", "block", key, "repaired", repaired, "err", err, "repair", rerr)
		}
		b.mu.Lock()
		b.status.Damaged++
		if repaired {
			b.status.Repaired++
		}
		b.mu.Unlock()
	}
	return b.pace.wait(ctx, int64(size))
}
