package spread

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/block/blocktest"
	"github.com/koinon/koinon/internal/block/disk"
	"github.com/koinon/koinon/internal/env/envfs"
	"github.com/koinon/koinon/internal/placement"
	"github.com/koinon/koinon/internal/sys"
)

// has reports which nodes of a world hold a block.
func (w *world) has(key sys.BlockKey) (ids []sys.NodeID) {
	for _, n := range w.nodes {
		if n.disk != nil {
			if _, err := n.disk.Size(key); err == nil {
				ids = append(ids, n.id)
			}
		}
	}
	return ids
}

func wait30(t testing.TB) context.Context {
	c, cancel := context.WithTimeout(ctx, 30*time.Second)
	t.Cleanup(cancel)
	return c
}

// hangs is far more than many operations take on a busy machine, and less than they take when each waits for a node that
// does not answer.
const hangs = 25 * time.Second

func TestNodeDownAndUpHeals(t *testing.T) {
	w := newWorld(t, worldOptions{nodes: 3})
	s := w.client(nil)
	var keys []sys.BlockKey
	size := func(i int) int { return 1000 + 7000*i }
	for i := range 10 {
		keys = append(keys, blocktest.Key(uint64(i+1), sys.PG(i%16), 0))
		mustPut(t, s, keys[i], size(i))
	}
	w.nodes[1].stop()
	began := time.Now()
	for i := 10; i < 40; i++ {
		keys = append(keys, blocktest.Key(uint64(i+1), sys.PG(i%16), 0))
		mustPut(t, s, keys[i], size(i))
	}
	if took := time.Since(began); took > hangs {
		t.Errorf("30 puts with a node down took %v", took)
	}
	if err := s.Sync(ctx, []sys.SliceID{keys[0].Slice, keys[20].Slice, keys[39].Slice}); err != nil {
		t.Fatalf("Sync with a node down: %v", err)
	}
	for i, key := range keys {
		mustHave(t, s, key, size(i))
	}
	w.nodes[1].start()
	if err := w.nodes[1].healer.WaitComplete(wait30(t)); err != nil {
		t.Fatal(err)
	}
	for i, key := range keys {
		mustHave(t, w.nodes[1].disk, key, size(i))
	}
	if st := w.nodes[1].healer.Status(); st.Groups != 16 || st.Complete != 16 {
		t.Fatalf("healing: %+v", st)
	}
}

func TestQuorumIsNeeded(t *testing.T) {
	w := newWorld(t, worldOptions{nodes: 3, noHeal: true})
	s := w.client(nil)
	key := blocktest.Key(1, 0, 0)
	mustPut(t, s, key, 100_000)
	w.nodes[0].stop()
	w.nodes[1].stop()
	err := s.Put(ctx, blocktest.Key(2, 0, 0), make([]byte, 100_000))
	wantKind(t, "Put with one of three nodes", err, sys.Unavailable)
	if !strings.Contains(err.Error(), "n1") || !strings.Contains(err.Error(), "n2") {
		t.Errorf("the error does not name who is missing: %v", err)
	}
	wantKind(t, "small Put", s.Put(ctx, blocktest.Key(3, 0, 0), make([]byte, 10)), sys.Unavailable)
	wantKind(t, "Sync with one of three nodes", s.Sync(ctx, []sys.SliceID{key.Slice}), sys.Unavailable)
	wantKind(t, "Delete", s.Delete(ctx, []sys.BlockKey{key}), sys.Unavailable)
	wantKind(t, "Get of what may be elsewhere", s.Get(ctx, blocktest.Key(9, 0, 0), 0, make([]byte, 1)), sys.Unavailable)
	w.nodes[0].start()
	waitFor(t, "Put to work again", func() bool { return s.Put(ctx, blocktest.Key(2, 0, 0), make([]byte, 100_000)) == nil })
}

// rot flips a bit of a block on the disk of a node.
func rot(t testing.TB, n *testNode, key sys.BlockKey) {
	t.Helper()
	want := blocktest.Bytes(key, 600)
	names, err := n.fs.List(n.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if !strings.HasSuffix(name, ".seg") {
			continue
		}
		f, err := n.fs.OpenReadWrite(n.fs.PathJoin(n.dir, name), vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		info, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		data := make([]byte, info.Size())
		if _, err := f.ReadAt(data, 0); err != nil {
			t.Fatal(err)
		}
		at := strings.Index(string(data), string(want))
		if at >= 0 {
			if _, err := f.WriteAt([]byte{data[at+100] ^ 1}, int64(at+100)); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		if at >= 0 {
			return
		}
	}
	t.Fatalf("%v has no %v to rot", n.id, key)
}

func TestRottenReplicaIsReadElsewhereAndRepaired(t *testing.T) {
	w := newWorld(t, worldOptions{nodes: 3, noHeal: true})
	key := blocktest.Key(1, 3, 0)
	s := w.client(firstAsked(2))
	mustPut(t, s, key, 200_000)
	waitFor(t, "block on all nodes", func() bool { return len(w.has(key)) == 3 })
	rot(t, w.nodes[1], key)
	wantKind(t, "Get on the node itself", w.nodes[1].disk.Get(ctx, key, 0, make([]byte, 100)), sys.Corrupt)
	mustHave(t, s, key, 200_000)
	waitFor(t, "repair", func() bool { return w.nodes[1].disk.Get(ctx, key, 0, make([]byte, 200_000)) == nil })
	mustHave(t, w.nodes[1].disk, key, 200_000)

	for _, n := range w.nodes {
		rot(t, n, key)
	}
	err := s.Get(ctx, key, 0, make([]byte, 100))
	wantKind(t, "Get when all are rotten", err, sys.Corrupt)
	for _, n := range []string{"n1", "n2", "n3"} {
		if !strings.Contains(err.Error(), n) {
			t.Errorf("the error does not name %s: %v", n, err)
		}
	}
}

// TestRotInUnsentPartOfPageIsFound: a node sends what it read without a check;
// a reader of a few bytes still finds that their page is damaged elsewhere.
func TestRotInUnsentPartOfPageIsFound(t *testing.T) {
	w := newWorld(t, worldOptions{nodes: 3, noHeal: true})
	key := blocktest.Key(1, 3, 0)
	s := w.client(firstAsked(2))
	want := blocktest.Bytes(key, 200_000)
	mustPut(t, s, key, len(want))
	waitFor(t, "block on all nodes", func() bool { return len(w.has(key)) == 3 })
	rot(t, w.nodes[1], key)
	b, err := s.Read(ctx, key, 5000, 300)
	if err != nil || string(b.Data) != string(want[5000:5300]) {
		t.Fatalf("Read: %d bytes, %v", len(b.Data), err)
	}
	b.Release()
	waitFor(t, "repair", func() bool { return w.nodes[1].disk.Get(ctx, key, 0, make([]byte, 200_000)) == nil })
}

// TestReadOn: whoever tests all copies is told which node's has rotted, and no other one is read in its place.
func TestReadOn(t *testing.T) {
	w := newWorld(t, worldOptions{nodes: 3, noHeal: true})
	key := blocktest.Key(1, 3, 0)
	s := w.client(nil)
	mustPut(t, s, key, 200_000)
	waitFor(t, "block on all nodes", func() bool { return len(w.has(key)) == 3 })
	rot(t, w.nodes[1], key)
	for id, want := range map[sys.NodeID]sys.Kind{1: 0, 2: sys.Corrupt, 3: 0} {
		n, err := s.ReadOn(ctx, id, key)
		if want == 0 && (err != nil || n != 200_000) {
			t.Errorf("%v: 200000 bytes expected, found %d, %v", id, n, err)
		} else if want != 0 {
			wantKind(t, "ReadOn where it has rotted", err, want)
		}
	}
	_, err := s.ReadOn(ctx, 1, blocktest.Key(1, 3, 1))
	wantKind(t, "ReadOn of a block that is not there", err, sys.NotExist)
}

func TestPatienceFollowsTheNodes(t *testing.T) {
	const least = 75 * time.Millisecond
	var p pace
	for _, step := range []struct {
		name   string
		answer time.Duration
		want   time.Duration
	}{
		{"nodes that are quick", time.Millisecond, least},
		{"all nodes are busy", 100 * time.Millisecond, 300 * time.Millisecond},
		{"nodes that hardly answer", time.Minute, 8 * least},
		{"quick again", time.Millisecond, least},
	} {
		for range 200 {
			p.note(step.answer)
		}
		if got := p.patience(least).Round(time.Millisecond); got != step.want {
			t.Errorf("%s: patience %v, want %v", step.name, got, step.want)
		}
	}
}

// firstAsked has a node asked before the others, and its answer waited for: one
// that is asked because the first is slow may win before the first says what it
// lacks.
func firstAsked(id sys.NodeID) func(*Options) {
	return func(o *Options) { o.Prefer, o.HedgeAfter = id, time.Minute }
}

func TestMissingReplicaIsRepairedByReading(t *testing.T) {
	w := newWorld(t, worldOptions{nodes: 3, noHeal: true})
	key := blocktest.Key(1, 3, 0)
	data := blocktest.Bytes(key, 5000)
	for _, n := range w.nodes[1:] {
		if err := n.disk.Put(ctx, key, data); err != nil {
			t.Fatal(err)
		}
	}
	mustHave(t, w.client(firstAsked(1)), key, 5000)
	waitFor(t, "repair", func() bool { return len(w.has(key)) == 3 })
}

func TestScrubberRepairs(t *testing.T) {
	w := newWorld(t, worldOptions{nodes: 3, noHeal: true})
	s := w.client(nil)
	for i := range uint32(12) {
		mustPut(t, s, blocktest.Key(1, 5, i), 90_000)
	}
	bad := blocktest.Key(1, 5, 7)
	waitFor(t, "block on all nodes", func() bool { return len(w.has(bad)) == 3 })
	rot(t, w.nodes[2], bad)
	n := w.nodes[2]
	b := NewScrubber(ScrubberConfig{Self: 3, Engine: n.disk, Cluster: n.view, Logger: quiet, BytesPerSecond: 1 << 40})
	if err := b.Scrub(ctx); err != nil {
		t.Fatal(err)
	}
	if st := b.Status(); st.Damaged != 1 || st.Repaired != 1 || st.Lost != 0 || st.Passes != 1 || st.Blocks < 12 {
		t.Fatalf("scrubbing found %+v", st)
	}
	mustHave(t, n.disk, bad, 90_000)
	for _, n := range w.nodes {
		rot(t, n, bad)
	}
	for pass := uint64(2); pass < 4; pass++ { // which does not count twice
		if err := b.Scrub(ctx); err != nil {
			t.Fatal(err)
		}
		if st := b.Status(); st.Damaged != pass || st.Repaired != 1 || st.Lost != 1 {
			t.Fatalf("where all copies have rotted scrubbing found %+v", st)
		}
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestHealingDoesNotResurrect(t *testing.T) {
	w := newWorld(t, worldOptions{nodes: 3})
	s := w.client(nil)
	gone, kept := blocktest.Key(1, 2, 0), blocktest.Key(2, 2, 0)
	mustPut(t, s, gone, 5000)
	mustPut(t, s, kept, 5000)
	waitFor(t, "blocks on all nodes", func() bool { return len(w.has(gone)) == 3 && len(w.has(kept)) == 3 })
	w.nodes[2].stop()
	err := s.Delete(ctx, []sys.BlockKey{gone})
	wantKind(t, "Delete with a node down", err, sys.Unavailable)
	if !strings.Contains(err.Error(), "n3") {
		t.Errorf("the error does not name who did not confirm: %v", err)
	}
	w.nodes[2].start()
	for _, n := range w.nodes {
		if err := n.healer.WaitComplete(wait30(t)); err != nil {
			t.Fatal(err)
		}
	}
	if ids := w.has(gone); len(ids) != 0 {
		t.Fatalf("the deleted block is on %v", ids)
	}
	if ids := w.has(kept); len(ids) != 3 {
		t.Fatalf("the other block is on %v", ids)
	}
	if err := s.Delete(ctx, []sys.BlockKey{gone}); err != nil {
		t.Fatalf("Delete repeated: %v", err)
	}
	infos, err := s.List(ctx, 2, sys.BlockKey{}, 0)
	if err != nil || len(infos) != 1 || infos[0].Key != kept {
		t.Fatalf("List: %v, %v", infos, err)
	}
}

// A node that lost blocks in a crash between Put and Sync must not count for
// them, and is made to fetch them.
func TestSyncSeesThroughACrash(t *testing.T) {
	disks := []*vfs.MemFS{vfs.NewCrashableMem(), vfs.NewCrashableMem(), vfs.NewCrashableMem()}
	w := newWorld(t, worldOptions{nodes: 3, noHeal: true, fs: func(i int) (envfs.FS, string) { return disks[i], "blocks" }})
	s := w.client(nil)
	key := blocktest.Key(1, 0, 0)
	if err := s.Sync(ctx, []sys.SliceID{key.Slice}); err != nil {
		t.Fatal(err)
	}
	mustPut(t, s, key, 100_000)
	waitFor(t, "block on all nodes", func() bool { return len(w.has(key)) == 3 })
	for _, i := range []int{0, 1} {
		lost := disks[i].CrashClone(vfs.CrashCloneCfg{})
		w.nodes[i].stop()
		w.nodes[i].fs = lost
		w.nodes[i].start()
	}
	if ids := w.has(key); len(ids) != 1 {
		t.Fatalf("after the crash the block is on %v", ids)
	}
	// The connections were lost with the nodes; the first call may see that.
	waitFor(t, "Sync", func() bool { return s.Sync(ctx, []sys.SliceID{key.Slice}) == nil })
	if ids := w.has(key); len(ids) < 2 {
		t.Fatalf("Sync succeeded with the block on %v", ids)
	}

	second := blocktest.Key(2, 0, 0)
	mustPut(t, s, second, 100_000)
	waitFor(t, "block on all nodes", func() bool { return len(w.has(second)) == 3 })
	for i, n := range w.nodes {
		n.stop()
		if i == 2 {
			continue // and its disk with it
		}
		n.fs = n.fs.(*vfs.MemFS).CrashClone(vfs.CrashCloneCfg{})
	}
	// Stopping syncs, so what is on stable storage is everything: take the
	// block away as a disk that lied would.
	for _, n := range w.nodes[:2] {
		n.fs = vfs.NewMem()
		n.start()
	}
	waitFor(t, "connections", func() bool { _, err := s.Usage(ctx); return err == nil })
	if err := s.Sync(ctx, []sys.SliceID{second.Slice}); err == nil {
		t.Fatal("Sync succeeded though the block is on no live node")
	}
}

func TestStaleTableIsRenewed(t *testing.T) {
	w := newWorld(t, worldOptions{nodes: 4, replicas: 2, noHeal: true})
	s := w.client(nil)
	mustPut(t, s, blocktest.Key(1, 0, 0), 1000)
	next := *w.table.Load()
	next.Epoch = 9
	w.table.Store(&next)
	for i := range uint32(30) { // the nodes learn of it from the client, and the other way round
		if i == 10 {
			for _, n := range w.nodes {
				n.view.table.Store(&next)
			}
		}
		mustPut(t, s, blocktest.Key(2, sys.PG(i%16), i), 1000)
	}
	older := s.cluster.Table().Epoch
	if older != 9 {
		t.Fatalf("the client follows table %d", older)
	}
}

func TestDrainMovesEverything(t *testing.T) {
	w := newWorld(t, worldOptions{nodes: 4, replicas: 2})
	s := w.client(nil)
	var keys []sys.BlockKey
	for i := range 60 {
		keys = append(keys, blocktest.Key(uint64(i+1), sys.PG(i%16), 0))
		mustPut(t, s, keys[i], 20_000)
	}
	members := []placement.Node{{ID: 1, Weight: 1}, {ID: 2}, {ID: 3, Weight: 1}, {ID: 4, Weight: 1}}
	next := must[*placement.Table](t)(placement.Reassign(w.table.Load(), members))
	w.table.Store(next)
	for _, n := range w.nodes {
		n.view.table.Store(next)
	}
	for _, key := range keys { // readers find blocks while they move
		mustHave(t, s, key, 20_000)
	}
	drained := make(map[sys.PG]int)
	for _, n := range w.nodes {
		if err := n.healer.WaitComplete(wait30(t)); err != nil {
			t.Fatal(err)
		}
		epoch, groups := n.healer.Drained()
		if epoch != next.Epoch || len(groups) > 1 {
			t.Fatalf("%v drained %v under table %d", n.id, groups, epoch)
		}
		for _, pg := range groups[2] {
			drained[pg]++
		}
	}
	for pg := range next.PGs {
		if want := 2 * len(next.From[pg]); drained[sys.PG(pg)] != want {
			t.Fatalf("the source of group %d is drained to %d nodes, want %d", pg, drained[sys.PG(pg)], want)
		}
	}
	w.table.Store(next.Forget(func(_ sys.PG, id sys.NodeID) bool { return id == 2 }))
	w.nodes[1].stop()
	for _, key := range keys {
		mustHave(t, s, key, 20_000)
		ids := w.has(key)
		for _, id := range next.Nodes(key.Slice.PG()) {
			if !slices.Contains(ids, id) {
				t.Fatalf("%v is on %v, should be on %v", key, ids, next.Nodes(key.Slice.PG()))
			}
		}
	}
}

// TestDrainOfASourceThatIsBehind: one that learns of the table late, as after a
// cut of the network, is compared with again soon, and not with the next pass
// that is due anyway.
func TestDrainOfASourceThatIsBehind(t *testing.T) {
	w := newWorld(t, worldOptions{nodes: 4, replicas: 2})
	members := []placement.Node{{ID: 1, Weight: 1}, {ID: 2}, {ID: 3, Weight: 1}, {ID: 4, Weight: 1}}
	next := must[*placement.Table](t)(placement.Reassign(w.table.Load(), members))
	w.table.Store(next)
	for _, n := range w.nodes {
		if n.id != 2 {
			n.view.table.Store(next)
		}
	}
	for _, n := range w.nodes {
		if n.id == 2 {
			continue
		}
		waitFor(t, "a pass", func() bool {
			st := n.healer.Status()
			return st.Epoch == next.Epoch && !st.Running
		})
		if _, groups := n.healer.Drained(); len(groups[2]) > 0 {
			t.Errorf("%v took a source that may still get blocks for drained", n.id)
		}
	}
	w.nodes[1].view.table.Store(next)
	for pg := range next.PGs {
		if !slices.Contains(next.From[pg], 2) {
			continue
		}
		for _, id := range next.PGs[pg] {
			waitFor(t, "draining", func() bool {
				_, groups := w.nodes[id-1].healer.Drained()
				return slices.Contains(groups[2], sys.PG(pg))
			})
		}
	}
}

// TestDrainPastADeadNode: those who live say of each source that they have all
// of it, though a node of the group, which they cannot reach, has not.
func TestDrainPastADeadNode(t *testing.T) {
	w := newWorld(t, worldOptions{nodes: 5, replicas: 3})
	s := w.client(nil)
	for i := range 60 {
		mustPut(t, s, blocktest.Key(uint64(i+1), sys.PG(i%16), 0), 5_000)
	}
	w.nodes[2].stop()
	members := []placement.Node{{ID: 1, Weight: 1}, {ID: 2}, {ID: 3, Weight: 1}, {ID: 4, Weight: 1}, {ID: 5, Weight: 1}}
	next := must[*placement.Table](t)(placement.Reassign(w.table.Load(), members))
	w.table.Store(next)
	for _, n := range w.nodes {
		n.view.table.Store(next)
	}
	for pg := range next.PGs {
		for _, id := range next.PGs[pg] {
			if id == 3 || !slices.Contains(next.From[pg], 2) {
				continue
			}
			waitFor(t, "draining", func() bool {
				epoch, groups := w.nodes[id-1].healer.Drained()
				return epoch == next.Epoch && slices.Contains(groups[2], sys.PG(pg))
			})
		}
	}
}

// slow is an engine that takes no puts while its gate is shut.
type slow struct {
	*disk.Store
	mu   sync.Mutex
	gate chan struct{}
}

func (e *slow) shut() (open func()) {
	gate := make(chan struct{})
	e.mu.Lock()
	e.gate = gate
	e.mu.Unlock()
	return func() {
		e.mu.Lock()
		e.gate = nil
		e.mu.Unlock()
		close(gate)
	}
}

func (e *slow) hang(ctx context.Context) {
	e.mu.Lock()
	gate := e.gate
	e.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
		}
	}
}

func (e *slow) PutSums(ctx context.Context, key sys.BlockKey, data []byte, sums block.Sums) error {
	e.hang(ctx)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return e.Store.PutSums(ctx, key, data, sums)
}

func (e *slow) GetUnchecked(ctx context.Context, key sys.BlockKey, off int, dst []byte, p *block.Proof) (int, error) {
	e.hang(ctx)
	return e.Store.GetUnchecked(ctx, key, off, dst, p)
}

func TestSlowNodeDoesNotHoldUp(t *testing.T) {
	var third *slow
	w := newWorld(t, worldOptions{nodes: 3, noHeal: true, engine: func(i int, d *disk.Store) Engine {
		e := &slow{Store: d}
		if i == 2 {
			third = e
		}
		return e
	}})
	s := w.client(func(o *Options) {
		o.Prefer = 3
		o.StragglerWait = 20 * time.Millisecond
		o.HedgeAfter = 10 * time.Millisecond
		o.SendMax = 5 * time.Second
	})
	first := blocktest.Key(1, 0, 0)
	mustPut(t, s, first, 300_000)
	open := third.shut()
	began := time.Now()
	buf := make([]byte, 300_000)
	for i := range uint32(20) {
		key := blocktest.Key(2, 1, i)
		n := 300_000
		if i%2 == 1 {
			n = 3000
		}
		copy(buf, blocktest.Bytes(key, n))
		if err := block.Retried(s, time.Minute).Put(ctx, key, buf[:n]); err != nil {
			t.Fatal(err) // a node that is well may fail once on a busy machine
		}
		clear(buf) // Put is over: the store must not use the buffer any more
	}
	mustHave(t, s, first, 300_000)
	if took := time.Since(began); took > hangs {
		t.Errorf("20 puts and a read with a node that hangs took %v", took)
	}
	open()
	for i := range uint32(20) {
		key := blocktest.Key(2, 1, i)
		n := 300_000
		if i%2 == 1 {
			n = 3000
		}
		waitFor(t, "the slow node to get the block", func() bool { return len(w.has(key)) == 3 })
		for _, node := range w.nodes {
			mustHave(t, node.disk, key, n)
		}
	}
}

// TestHangingNodesEndAPut: a put whose quorum hangs fails, so that it can be
// tried again, instead of waiting for ever. How slow the machine is does not
// matter: a node that is only too busy is told as late too.
func TestHangingNodesEndAPut(t *testing.T) {
	var engines []*slow
	w := newWorld(t, worldOptions{nodes: 3, noHeal: true, engine: func(_ int, d *disk.Store) Engine {
		engines = append(engines, &slow{Store: d})
		return engines[len(engines)-1]
	}})
	s := w.client(func(o *Options) { o.SendMax = 100 * time.Millisecond })
	for _, e := range engines[1:] {
		defer e.shut()()
	}
	err := s.Put(ctx, blocktest.Key(1, 0, 0), make([]byte, 300_000))
	if !sys.Is(err, sys.Unavailable) || !strings.Contains(err.Error(), "did not take the block in time") {
		t.Errorf("a put that two of three nodes do not take: %v", err)
	}
}

// at is a context with a deadline whose timer has not fired.
type at struct {
	context.Context
	deadline time.Time
}

func (c at) Deadline() (time.Time, bool) { return c.deadline, true }

// TestLate: a call that ran out of time is told as that, whoever noticed first.
func TestLate(t *testing.T) {
	ended, cancel := context.WithCancel(ctx)
	cancel()
	over, release := context.WithDeadline(ctx, time.Unix(1, 0))
	defer release()
	past, future := at{ctx, time.Unix(1, 0)}, at{ctx, time.Now().Add(time.Hour)}
	lost := sys.E(sys.Op("wire.Call"), sys.Unavailable, "the connection was lost")
	waited := sys.E(sys.Op("wire.Call"), sys.Unavailable, fmt.Errorf("no answer: %w", context.DeadlineExceeded))
	for _, tc := range []struct {
		name string
		ctx  context.Context
		err  error
		want bool
	}{
		{"no error", over, nil, false},
		{"the context noticed", over, lost, true},
		{"the call noticed before the context", future, waited, true},
		{"the node noticed before the context", past, lost, true},
		{"there was time", future, lost, false},
		{"there is no deadline", ctx, lost, false},
		{"the caller gave up", ended, lost, false},
	} {
		if got := late(tc.ctx, tc.err); got != tc.want {
			t.Errorf("%s: %v", tc.name, got)
		}
	}
}

func TestFullNodeIsNamed(t *testing.T) {
	var disks []*vfs.MemFS
	w := newWorld(t, worldOptions{nodes: 3, noHeal: true, fs: func(i int) (envfs.FS, string) {
		fs := vfs.NewMem()
		fs.TestingSetDiskUsage(vfs.DiskUsage{TotalBytes: 1 << 30, AvailBytes: 1 << 29})
		disks = append(disks, fs)
		return fs, "blocks"
	}})
	s := w.client(nil)
	full := func(i int) {
		disks[i].TestingSetDiskUsage(vfs.DiskUsage{TotalBytes: 1 << 30, AvailBytes: 1000})
		waitFor(t, "node to be full", func() bool { u, err := w.nodes[i].disk.Usage(ctx); return err == nil && u.Free == 0 })
	}
	full(0)
	mustPut(t, s, blocktest.Key(1, 0, 0), 100_000)
	full(1)
	err := s.Put(ctx, blocktest.Key(2, 0, 0), make([]byte, 100_000))
	wantKind(t, "Put with two full nodes", err, sys.NoSpace)
	want := "no space left on n1, n2: all that is free are the 1 MiB that stay free (min_free): free some space there or add a node"
	if root := sys.Root(err); root == nil || root.Error() != want {
		t.Errorf("the error should name the full nodes once and say what to do: %v", err)
	}
	mustHave(t, s, blocktest.Key(1, 0, 0), 100_000)
}
