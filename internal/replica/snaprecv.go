package replica

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/objstorage/objstorageprovider"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/koinon/koinon/internal/replica/replicapb"
	"github.com/koinon/koinon/internal/sys"
)

const (
	// tableBytes is about the size of the tables a snapshot is written to.
	tableBytes = 32 << 20
	// streamIdle is after which silence a snapshot that arrives may be given
	// up in favour of another one.
	streamIdle = 15 * time.Second
	// rowMax bounds a key of a snapshot.
	rowMax = 64 << 10
)

// incoming is the snapshot that arrives at a group, one at most. Its rows go to
// tables beside the state, and into the state in one step at the end, so that
// a snapshot that breaks off has changed nothing.
type incoming struct {
	mu      sync.Mutex
	stream  uint64 // 0: none
	next    uint64
	done    bool // all of it is in place
	from    sys.NodeID
	at      time.Duration // of the last chunk
	applied appliedRow
	total   uint64
	lastKey []byte
	files   []string
	writer  *sstable.Writer
	size    int
	remove  func(name string) error
}

// clearSnapshots removes what earlier runs left.
func (h *Host) clearSnapshots() error {
	dir := h.snapshotDir()
	if err := h.cfg.FS.RemoveAll(dir); err != nil && !isNotExist(err) {
		return err
	}
	return h.cfg.FS.MkdirAll(dir, 0o700)
}

func (h *Host) snapshotDir() string { return h.cfg.FS.PathJoin(h.cfg.Dir, "incoming") }

func refuse(reason string) (*replicapb.Reply, error) {
	return &replicapb.Reply{Refused: true, Reason: reason}, nil
}

// receiveChunk takes one chunk in.
func (g *Group) receiveChunk(ctx context.Context, from sys.NodeID, c *replicapb.SnapshotChunk) (*replicapb.Reply, error) {
	h := g.host
	if !h.use() {
		return nil, h.stopped("replica.Snapshot")
	}
	defer h.unuse()
	in := &g.incoming
	in.mu.Lock()
	defer in.mu.Unlock()
	now := h.cfg.Clock.Boot()
	if c.Number == 0 && c.Stream != in.stream {
		if in.stream != 0 && !in.done && now-in.at < streamIdle {
			return refuse(fmt.Sprintf("a snapshot from %v is under way", in.from))
		}
		in.reset()
		if c.Applied == nil || c.Applied.Slot <= g.applied.Load() {
			return refuse("the state is not older here")
		}
		in.begin(h, from, c)
	}
	switch {
	case c.Stream != in.stream || from != in.from:
		return refuse("an unknown stream")
	case c.Number+1 == in.next && (!c.Last || in.done):
		in.at = now
		return &replicapb.Reply{Next: in.next}, nil // a repeated chunk
	case c.Number != in.next:
		return refuse(fmt.Sprintf("chunk %d expected, found %d", in.next, c.Number))
	}
	in.at = now
	if err := in.take(h, g, c); err != nil {
		in.reset()
		return refuse(err.Error())
	}
	if c.Last {
		if err := g.install(ctx); err != nil {
			in.reset()
			return nil, err
		}
		in.done = true
	}
	in.next++
	return &replicapb.Reply{Next: in.next}, nil
}

func (in *incoming) begin(h *Host, from sys.NodeID, c *replicapb.SnapshotChunk) {
	in.stream, in.next, in.from, in.done = c.Stream, 0, from, false
	in.applied = appliedRow{c.Applied.Slot, c.Applied.TimeNs, c.Applied.Digest}
	in.remove = h.cfg.FS.Remove
}

// reset gives up what has arrived. The files that are in place already are not
// there any more.
func (in *incoming) reset() {
	if in.writer != nil {
		// What it says about a file that is removed next does not matter.
		_ = in.writer.Close()
	}
	for _, name := range in.files {
		// What cannot be removed now is removed by the next Open.
		_ = in.remove(name)
	}
	in.stream, in.next, in.total, in.size, in.done = 0, 0, 0, 0, false
	in.files, in.writer, in.lastKey = nil, nil, nil
}

// drop is reset for Close.
func (in *incoming) drop() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.reset()
}

// take checks a chunk and writes its rows.
func (in *incoming) take(h *Host, g *Group, c *replicapb.SnapshotChunk) error {
	crc := uint32(0)
	for _, r := range c.Rows {
		crc = checksumRow(crc, r.Key, r.Value)
	}
	if crc != c.Crc {
		return fmt.Errorf("chunk %d: checksum %08x expected, found %08x", c.Number, c.Crc, crc)
	}
	prefix := groupPrefix(g.id)
	for _, r := range c.Rows {
		if len(r.Key) == 0 || len(r.Key) > rowMax || Namespace(r.Key[0]) == nsLocal || bytes.Compare(r.Key, in.lastKey) <= 0 {
			return fmt.Errorf("chunk %d: a key is out of order or out of place", c.Number)
		}
		in.lastKey = r.Key
		if err := in.write(h, append(prefix[:len(prefix):len(prefix)], r.Key...), r.Value); err != nil {
			return err
		}
		in.total++
	}
	if !c.Last {
		return nil
	}
	if in.total != c.Total {
		return fmt.Errorf("%d rows expected, found %d", c.Total, in.total)
	}
	if err := in.write(h, appliedKey(g.id), in.applied.encode()); err != nil {
		return err
	}
	return in.finishTable()
}

// write adds a row to the current table, or begins one.
func (in *incoming) write(h *Host, key, value []byte) error {
	if in.size >= tableBytes {
		if err := in.finishTable(); err != nil {
			return err
		}
	}
	if in.writer == nil {
		name := h.cfg.FS.PathJoin(h.snapshotDir(), fmt.Sprintf("%d.sst", h.snapshotNo.Add(1)))
		f, err := h.cfg.FS.Create(name, diskCategory)
		if err != nil {
			return err
		}
		in.files = append(in.files, name)
		in.writer = sstable.NewWriter(objstorageprovider.NewFileWritable(f), sstable.WriterOptions{
			TableFormat: h.db.FormatMajorVersion().MaxTableFormat(), BlockSize: 16 << 10})
	}
	in.size += len(key) + len(value)
	return in.writer.Set(key, value)
}

func (in *incoming) finishTable() error {
	if in.writer == nil {
		return nil
	}
	w := in.writer
	in.writer, in.size = nil, 0
	return w.Close()
}

// install puts the snapshot in the place of the group's state, between two
// entries, and returns when that is durable. in.mu is held.
func (g *Group) install(ctx context.Context) error {
	done := make(chan error, 1)
	in := &g.incoming
	files, applied := in.files, in.applied
	in.files = nil // Pebble's from now on
	g.applier.do(func() error {
		changed, err := g.applier.replace(files, applied)
		done <- err
		if !changed {
			return nil // the sender is told, and tries again
		}
		return err
	})
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return sys.E(sys.Op("replica.Snapshot"), sys.Interrupted, ctx.Err())
	case <-g.host.stop:
		return g.host.stopped("replica.Snapshot")
	}
}

// replace swaps the group's state for the tables' rows, all at once. An error
// after the state has changed is the host's end.
func (a *applier) replace(files []string, to appliedRow) (changed bool, err error) {
	h := a.g.host
	if to.slot <= a.at.slot {
		for _, name := range files {
			err = errors.Join(err, h.cfg.FS.Remove(name))
		}
		return false, err
	}
	// Flushed before, so that the tables go straight into the levels, and
	// after, because without a log of its own Pebble may keep them in memory.
	if err := a.db.Flush(); err != nil {
		return false, err
	}
	lo, hi := groupSpan(a.g.id)
	if _, err := a.db.IngestAndExcise(context.Background(), files, nil, nil, pebble.KeyRange{Start: lo, End: hi}); err != nil {
		return false, err
	}
	if err := a.db.Flush(); err != nil {
		return true, err
	}
	if err := a.load(); err != nil {
		return true, err
	}
	if a.at != to {
		panic(fmt.Sprintf("replica: snapshot: state %v expected, found %v", to, a.at))
	}
	h.installs.Add(1)
	h.cfg.Logger.Info("a snapshot is in place", "group", a.g.id, "slot", to.slot)
	a.g.mu.Lock()
	a.g.ownDigests = nil
	a.g.installed = to.slot
	a.g.mu.Unlock()
	a.g.flushed.Store(max(a.g.flushed.Load(), to.slot))
	a.g.appliedTo(to.slot)
	h.wakeDriver()
	return true, nil
}
