package spread

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/placement"
	"github.com/koinon/koinon/internal/sys"
)

// HealerConfig configures a Healer. Self, Engine and Cluster are required; a
// zero value of the others means its default.
type HealerConfig struct {
	Self    sys.NodeID
	Engine  Engine
	Cluster Cluster
	// Every is how often everything is compared when nothing happens (default
	// 5 min); RetryEvery how soon after a pass that could not reach a peer
	// (default 2 s, growing to Every).
	Every, RetryEvery time.Duration
	// BytesPerSecond bounds what is fetched (default 128 MiB).
	BytesPerSecond int64
	// TableEvery is how often the placement table is looked at for a new epoch
	// (default 250 ms).
	TableEvery time.Duration
	Logger     *slog.Logger
}

// HealStatus is how far healing is.
type HealStatus struct {
	// Epoch is of the table of the last pass that began.
	Epoch uint64
	// Groups is how many placement groups this node holds, Complete how many
	// of them were found to lack nothing that a reachable peer has, with all
	// peers reached.
	Groups, Complete int
	// Passes counts the passes that ended.
	Passes uint64
	// Fetched, Bytes, Buried and Failed count blocks and bytes that were
	// fetched, deletions that were learned of, and blocks that could not be
	// had, since the start.
	Fetched, Bytes, Buried, Failed uint64
	// Running says that a pass is under way.
	Running bool
}

// Healer makes one node hold all blocks of its placement groups: when it
// starts, when the table changes, and now and then, it compares its keys with
// those of its peers and fetches what it lacks. Deletions spread in the same
// way. Nothing is ever deleted because a peer does not have it.
type Healer struct {
	cfg   HealerConfig
	fetch *fetcher
	pace  pacer

	cancel context.CancelFunc
	work   sync.WaitGroup
	kick   chan struct{}

	mu     sync.Mutex
	status HealStatus
	wanted uint64 // passes asked for by Kick
	served uint64 // of these, begun
	// drained are the groups of which each source had nothing that this node
	// still lacked, in the last pass.
	drained map[sys.NodeID][]sys.PG
	changed chan struct{} // closed when status changes
}

// NewHealer starts healing. Close must be called.
func NewHealer(cfg HealerConfig) *Healer {
	if cfg.Every == 0 {
		cfg.Every = 5 * time.Minute
	}
	if cfg.RetryEvery == 0 {
		cfg.RetryEvery = 2 * time.Second
	}
	if cfg.BytesPerSecond == 0 {
		cfg.BytesPerSecond = 128 << 20
	}
	if cfg.TableEvery == 0 {
		cfg.TableEvery = 250 * time.Millisecond
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	h := &Healer{cfg: cfg, fetch: newFetcher(cfg.Self, cfg.Engine, cfg.Cluster), kick: make(chan struct{}, 1),
		drained: make(map[sys.NodeID][]sys.PG), changed: make(chan struct{})}
	h.pace.rate = cfg.BytesPerSecond
	ctx, cancel := context.WithCancel(context.Background())
	h.cancel = cancel
	h.work.Go(func() { h.run(ctx) })
	return h
}

// Close ends healing and waits for it.
func (h *Healer) Close() error {
	h.cancel()
	h.work.Wait()
	return nil
}

// Kick asks for a pass now.
func (h *Healer) Kick() {
	h.mu.Lock()
	h.wanted++
	h.mu.Unlock()
	select {
	case h.kick <- struct{}{}:
	default:
	}
}

// Status returns how far healing is.
func (h *Healer) Status() HealStatus {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.status
}

// Drained returns, for each source of the table of that epoch, the groups of
// which this node has everything that the source has: found so when the source
// followed the table too, so that it gets nothing new. When the nodes of a
// group say so, the source is no longer needed for it, whatever others lack.
func (h *Healer) Drained() (epoch uint64, groups map[sys.NodeID][]sys.PG) {
	h.mu.Lock()
	defer h.mu.Unlock()
	groups = make(map[sys.NodeID][]sys.PG, len(h.drained))
	for id, list := range h.drained {
		groups[id] = slices.Clone(list)
	}
	return h.status.Epoch, groups
}

// WaitComplete returns when a pass that began after the call has found every
// group complete, or with ctx.
func (h *Healer) WaitComplete(ctx context.Context) error {
	h.Kick()
	h.mu.Lock()
	want := h.wanted
	for {
		done := h.served >= want && !h.status.Running && h.status.Complete == h.status.Groups
		changed := h.changed
		st := h.status
		h.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return sys.E(sys.Op("healer.Wait"), sys.Unavailable,
				fmt.Errorf("%d of %d groups are complete: %w", st.Complete, st.Groups, context.Cause(ctx)))
		}
		h.mu.Lock()
	}
}

// update changes the status and wakes those who wait.
func (h *Healer) update(fn func(st *HealStatus)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	fn(&h.status)
	close(h.changed)
	h.changed = make(chan struct{})
}

func (h *Healer) run(ctx context.Context) {
	look := env.NewTicker(env.System{}, h.cfg.TableEvery)
	defer look.Stop()
	retry := h.cfg.RetryEvery
	due := time.Now()
	for {
		t := h.cfg.Cluster.Table()
		h.mu.Lock()
		begin := t != nil && (t.Epoch != h.status.Epoch || h.served < h.wanted || !time.Now().Before(due))
		if begin {
			h.served = h.wanted
		}
		h.mu.Unlock()
		if begin {
			if h.pass(ctx, t) {
				retry = h.cfg.RetryEvery
				due = time.Now().Add(h.cfg.Every)
			} else {
				due = time.Now().Add(retry)
				retry = min(2*retry, h.cfg.Every)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-h.kick:
		case <-look.C:
		}
	}
}

// pass compares every group with every peer. It reports whether all are
// complete, and all sources followed the table: one that did not may have got
// something since.
func (h *Healer) pass(ctx context.Context, t *placement.Table) bool {
	var mine []sys.PG
	for pg := range t.PGs {
		if t.Holds(sys.PG(pg), h.cfg.Self) {
			mine = append(mine, sys.PG(pg))
		}
	}
	h.mu.Lock()
	clear(h.drained)
	h.mu.Unlock()
	h.update(func(st *HealStatus) {
		st.Epoch, st.Groups, st.Complete, st.Running = t.Epoch, len(mine), 0, true
	})
	down := make(map[sys.NodeID]bool) // asked once per pass
	complete, followed := 0, true
	for _, pg := range mine {
		if ctx.Err() != nil {
			break
		}
		whole, all := h.group(ctx, t, pg, down)
		followed = followed && all
		if whole {
			complete++
			h.update(func(st *HealStatus) { st.Complete = complete })
		}
	}
	h.update(func(st *HealStatus) { st.Running = false; st.Passes++ })
	if complete < len(mine) && ctx.Err() == nil {
		h.cfg.Logger.Info("healing is not complete; it will be tried again", "groups", len(mine), "complete", complete)
	}
	return complete == len(mine) && followed
}

// group compares one group with all peers. It reports whether nothing is
// lacking that any of them has, and whether all sources that were reached follow
// the table.
func (h *Healer) group(ctx context.Context, t *placement.Table, pg sys.PG, down map[sys.NodeID]bool) (whole, followed bool) {
	whole, followed = true, true
	for _, id := range h.fetch.sources(t, pg) {
		if down[id] {
			whole = false
			continue
		}
		epoch, err := h.peer(ctx, t, pg, id)
		if err != nil {
			whole = false
			if sys.Is(err, sys.Unavailable) {
				down[id] = true
			}
			if ctx.Err() == nil {
				h.cfg.Logger.Debug("group cannot be compared", "group", pg, "peer", id, "err", err)
			}
			continue
		}
		switch {
		case !slices.Contains(t.Sources(pg), id):
		case epoch < t.Epoch:
			followed = false
		default:
			h.mu.Lock()
			h.drained[id] = append(h.drained[id], pg)
			h.mu.Unlock()
		}
	}
	return whole, followed
}

// runKeys is how many keys a run of a comparison has, boundsMax how many runs
// there are at most.
const (
	runKeys   = 128
	boundsMax = 4096
)

// peer brings what one peer has of a group and this node lacks. It returns the
// epoch that the peer follows.
func (h *Healer) peer(ctx context.Context, t *placement.Table, pg sys.PG, id sys.NodeID) (uint64, error) {
	node, err := remoteTo(h.cfg.Cluster, id)
	if err != nil {
		return 0, err
	}
	// One digest of the whole group first: most groups are equal.
	theirs, epoch, err := node.digests(ctx, pg, nil)
	if err != nil {
		return 0, err
	}
	ours, err := h.cfg.Engine.Digests(pg, nil)
	if err != nil || ours[0] == theirs[0] || theirs[0].Count == 0 {
		return epoch, err
	}
	bounds, err := h.bounds(pg, ours[0].Count)
	if err != nil {
		return epoch, err
	}
	if theirs, _, err = node.digests(ctx, pg, bounds); err != nil {
		return epoch, err
	}
	if ours, err = h.cfg.Engine.Digests(pg, bounds); err != nil {
		return epoch, err
	}
	for i := range theirs {
		if ours[i] == theirs[i] || theirs[i].Count == 0 {
			continue
		}
		var after sys.BlockKey
		if i > 0 {
			after = bounds[i-1]
		}
		end := sys.BlockKey{Slice: ^sys.SliceID(0), Index: ^uint32(0)}
		if i < len(bounds) {
			end = bounds[i]
		}
		if err := h.compareRun(ctx, t, pg, node, after, end); err != nil {
			return epoch, err
		}
	}
	return epoch, nil
}

// bounds cuts this node's keys of a group into runs.
func (h *Healer) bounds(pg sys.PG, count uint64) ([]sys.BlockKey, error) {
	step := max(runKeys, int(count/boundsMax)+1)
	var bounds []sys.BlockKey
	var after sys.BlockKey
	for n := 0; ; {
		page, err := h.cfg.Engine.Knows(pg, after, keysMax)
		if err != nil {
			return nil, err
		}
		for _, k := range page {
			if n++; n%step == 0 && len(bounds) < boundsMax {
				bounds = append(bounds, k.Key)
			}
			after = k.Key
		}
		if len(page) < keysMax {
			return bounds, nil
		}
	}
}

// compareRun goes through a peer's keys after one key and up to another.
func (h *Healer) compareRun(ctx context.Context, t *placement.Table, pg sys.PG, node remote, after, end sys.BlockKey) error {
	for {
		page, err := node.list(ctx, pg, after, keysMax)
		if err != nil {
			return err
		}
		var buried, missing []sys.BlockKey
		past := len(page) < keysMax
		for _, k := range page {
			if after = k.Key; end.Less(k.Key) {
				past = true
				break
			}
			if k.Key.Slice.PG() != pg {
				return sys.E(sys.Op("healer.compare"), sys.Corrupt, nodeSubject(node.id), fmt.Sprintf("listed %v in group %d", k.Key, pg))
			}
			_, err := h.cfg.Engine.Size(k.Key)
			switch {
			case sys.Is(err, sys.Stale):
			case k.Deleted():
				buried = append(buried, k.Key)
			case sys.Is(err, sys.NotExist):
				missing = append(missing, k.Key)
			}
		}
		if len(buried) > 0 {
			if err := h.cfg.Engine.Delete(ctx, buried); err != nil {
				return err
			}
			h.update(func(st *HealStatus) { st.Buried += uint64(len(buried)) })
		}
		if err := h.fetchAll(ctx, t, node.id, missing); err != nil {
			return err
		}
		if past {
			return nil
		}
	}
}

// fetchAll fetches blocks, a few at a time, first from the node that listed
// them.
func (h *Healer) fetchAll(ctx context.Context, t *placement.Table, first sys.NodeID, keys []sys.BlockKey) error {
	if len(keys) == 0 {
		return nil
	}
	from := []sys.NodeID{first}
	for _, id := range h.fetch.sources(t, keys[0].Slice.PG()) {
		if id != first {
			from = append(from, id)
		}
	}
	var next atomic.Int64
	var mu sync.Mutex
	var failed error
	var wg sync.WaitGroup
	for range min(fetchSlots, len(keys)) {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < int64(len(keys)) && ctx.Err() == nil; i = next.Add(1) - 1 {
				n, err := h.fetch.fetch(ctx, keys[i], from, false)
				if err == nil {
					err = h.pace.wait(ctx, int64(n))
				}
				h.update(func(st *HealStatus) {
					if err != nil {
						st.Failed++
					} else {
						st.Fetched++
						st.Bytes += uint64(n)
					}
				})
				if err != nil {
					mu.Lock()
					failed = err
					mu.Unlock()
				}
				if sys.Is(err, sys.NoSpace) {
					return
				}
			}
		})
	}
	wg.Wait()
	if failed == nil {
		failed = ctx.Err()
	}
	return failed
}

// pacer spreads bytes over time, for several workers together.
type pacer struct {
	rate int64 // bytes per second
	mu   sync.Mutex
	due  time.Time
}

// wait returns when n more bytes may be spent.
func (p *pacer) wait(ctx context.Context, n int64) error {
	p.mu.Lock()
	now := time.Now()
	if p.due.Before(now) {
		p.due = now
	}
	p.due = p.due.Add(time.Duration(float64(n) / float64(p.rate) * float64(time.Second)))
	ahead := p.due.Sub(now)
	p.mu.Unlock()
	if ahead < 10*time.Millisecond {
		return ctx.Err()
	}
	return sleep(ctx, ahead)
}
