package replica

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2/objstorage/objstorageprovider"
	"github.com/cockroachdb/pebble/v2/sstable"

	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/replica/replicapb"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/paxos"
)

const (
	// tableBytes is about the size of the tables a snapshot is written to. What
	// has arrived survives a restart up to the last whole table.
	tableBytes = 8 << 20
	// streamIdle, longer than chunkTimeout, is after which silence a snapshot
	// that arrives may be given up in favour of another sender's.
	streamIdle = 6 * time.Second
	// rowMax bounds a key of a snapshot.
	rowMax = 64 << 10
)

// incoming is the snapshot that arrives at a group, one at most. Its rows go to
// tables beside the state, and into the state in one step at the end, so that
// a snapshot that breaks off has changed nothing.
type incoming struct {
	turn chan struct{} // holds one thing while nobody uses the rest
	h    *Host
	g    *Group
	snapHead
	from    sys.NodeID
	next    uint64        // the chunk wanted next
	done    bool          // all of it is in place
	at      time.Duration // of the last chunk
	total   uint64        // rows
	lastKey []byte
	files   []string // within snapshotDir
	writer  *sstable.Writer
	size    int // of the current table
}

func (h *Host) snapshotDir() string { return h.cfg.FS.PathJoin(h.cfg.Dir, "incoming") }

// progressName is the file that says how much of a group's snapshot is there.
func (in *incoming) progressName() string { return fmt.Sprintf("%d.progress", in.g.id) }

func tableName(g sys.GroupID, stream uint64, n int) string {
	return fmt.Sprintf("%d-%016x-%d.sst", g, stream, n)
}

func (in *incoming) path(name string) string { return in.h.cfg.FS.PathJoin(in.h.snapshotDir(), name) }

// clearSnapshots removes what no snapshot that goes on needs.
func (h *Host) clearSnapshots() error {
	fs, dir := h.cfg.FS, h.snapshotDir()
	names, err := fs.List(dir)
	if err != nil {
		return err
	}
	kept := map[string]bool{}
	for _, g := range h.groups {
		if g.incoming.stream != 0 {
			kept[g.incoming.progressName()] = true
		}
		for _, name := range g.incoming.files {
			kept[name] = true
		}
	}
	for _, name := range names {
		if !kept[name] {
			err = errors.Join(err, fs.RemoveAll(fs.PathJoin(dir, name)))
		}
	}
	return err
}

// resume finds what has arrived of a snapshot before the process was started.
// What cannot be used is not an error: it is sent again.
func (in *incoming) resume(h *Host, g *Group) error {
	in.h, in.g, in.turn = h, g, make(chan struct{}, 1)
	in.unlock()
	if err := h.cfg.FS.MkdirAll(h.snapshotDir(), 0o700); err != nil {
		return err
	}
	b, err := readFile(h.cfg.FS, in.path(in.progressName()))
	if err != nil || b == nil {
		return err
	}
	var p replicapb.SnapshotProgress
	err = pb.Unmarshal(b, &p)
	if err == nil && p.Offer == nil {
		err = errors.New("it is empty")
	}
	var head snapHead
	if err == nil {
		head, err = readOffer(p.Offer)
	}
	var files []string
	for i := range p.Tables {
		files = append(files, tableName(g.id, head.stream, int(i)))
		if _, serr := h.cfg.FS.Stat(in.path(files[i])); err == nil && serr != nil {
			err = serr
		}
		if err != nil {
			break
		}
	}
	if err != nil {
		h.cfg.Logger.Warn("a part of a snapshot cannot be used; all of it is fetched again", "group", g.id, "err", err)
		return nil
	}
	if head.applied.slot > g.applier.at.slot {
		in.snapHead, in.from = head, sys.NodeID(p.From)
		in.next, in.total, in.lastKey, in.files = p.Next, p.Total, p.LastKey, files
		in.at = -streamIdle // another sender's is as good
	}
	return nil
}

// lock waits until nobody else uses in: as long as a snapshot is put in place.
func (in *incoming) lock(ctx context.Context, h *Host) error {
	switch h.cfg.Sched.Wait(nil, in.turn, ctx.Done(), h.stop) {
	case env.GotB:
		return sys.E(sys.Op("replica.Snapshot"), sys.Interrupted, ctx.Err())
	case env.GotC:
		return h.stopped("replica.Snapshot")
	}
	return nil
}

func (in *incoming) unlock() { in.turn <- struct{}{} }

// save makes durable how much has arrived, at the end of a table.
func (in *incoming) save() error {
	fs := in.h.cfg.FS
	b := pb.Marshal(&replicapb.SnapshotProgress{Offer: in.offer(), From: uint64(in.from), Next: in.next,
		Total: in.total, LastKey: in.lastKey, Tables: uint64(len(in.files))})
	return writeFile(fs, in.path(in.progressName()), b)
}

func refuse(reason string) (*replicapb.Reply, error) {
	return &replicapb.Reply{Refused: true, Reason: reason}, nil
}

// leads is why a leader takes no snapshot: it has all that is chosen, and who
// follows the commands that it applies must not miss any.
const leads = "this node leads, and lacks nothing"

// receiveOffer answers whether a snapshot is wanted, and from which chunk on.
func (g *Group) receiveOffer(ctx context.Context, from sys.NodeID, o *replicapb.SnapshotOffer) (*replicapb.Reply, error) {
	h := g.host
	if !h.use() {
		return nil, h.stopped("replica.Snapshot")
	}
	defer h.unuse()
	head, err := readOffer(o)
	if err != nil {
		return refuse(err.Error())
	}
	in := &g.incoming
	if err := in.lock(ctx, h); err != nil {
		return nil, err
	}
	defer in.unlock()
	now := h.cfg.Clock.Boot()
	switch {
	case g.Leading() != 0:
		return refuse(leads)
	case head.applied.slot <= g.applied.Load():
		return refuse("the state is not older here")
	case head.same(&in.snapHead) && from == in.from && !in.done:
		if in.next > 0 {
			h.cfg.Logger.Info("a snapshot goes on", "group", g.id, "from", from, "chunk", in.next)
		}
	case in.stream != 0 && !in.done && from != in.from && now-in.at < streamIdle:
		return refuse(fmt.Sprintf("a snapshot from %v is under way", in.from))
	default:
		in.reset()
		in.snapHead, in.from = head, from
	}
	in.at = now
	return &replicapb.Reply{Next: in.next}, nil
}

// receiveChunk takes one chunk in.
func (g *Group) receiveChunk(ctx context.Context, from sys.NodeID, c *replicapb.SnapshotChunk) (*replicapb.Reply, error) {
	h := g.host
	if !h.use() {
		return nil, h.stopped("replica.Snapshot")
	}
	defer h.unuse()
	in := &g.incoming
	if err := in.lock(ctx, h); err != nil {
		return nil, err
	}
	defer in.unlock()
	switch {
	case c.Stream == 0 || c.Stream != in.stream || from != in.from:
		return refuse("an unknown stream")
	case c.Number+1 == in.next && (!c.Last || in.done):
		in.at = h.cfg.Clock.Boot()
		return &replicapb.Reply{Next: in.next}, nil // a repeated chunk
	case c.Number != in.next || in.done:
		return refuse(fmt.Sprintf("chunk %d expected, found %d", in.next, c.Number))
	}
	in.at = h.cfg.Clock.Boot()
	if err := in.check(c); err != nil {
		return refuse(err.Error()) // nothing is lost: the sender goes on from here
	}
	if err := in.take(c); err != nil {
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
	return &replicapb.Reply{Next: in.next}, nil
}

// check refuses a chunk that has been changed on the way.
func (in *incoming) check(c *replicapb.SnapshotChunk) error {
	crc, last := uint32(0), in.lastKey
	for _, r := range c.Rows {
		crc = checksumRow(crc, r.Key, r.Value)
	}
	if crc = checksumChunk(crc, c); crc != c.Crc {
		return fmt.Errorf("chunk %d: checksum %08x expected, found %08x", c.Number, c.Crc, crc)
	}
	for _, r := range c.Rows {
		if len(r.Key) == 0 || len(r.Key) > rowMax || rsm.Namespace(r.Key[0]) == nsLocal || bytes.Compare(r.Key, last) <= 0 {
			return fmt.Errorf("chunk %d: a key is out of order or out of place", c.Number)
		}
		last = r.Key
	}
	return nil
}

// take writes a chunk's rows.
func (in *incoming) take(c *replicapb.SnapshotChunk) error {
	prefix := groupPrefix(in.g.id)
	for _, r := range c.Rows {
		in.lastKey = r.Key
		if err := in.write(append(prefix[:len(prefix):len(prefix)], r.Key...), r.Value); err != nil {
			return err
		}
		in.total++
	}
	in.next++
	if !c.Last {
		if in.size < tableBytes {
			return nil
		}
		if err := in.finishTable(); err != nil {
			return err
		}
		return in.save()
	}
	if in.total != c.Total {
		return fmt.Errorf("%d rows expected, found %d", c.Total, in.total)
	}
	members := membersRow{history: in.history, joined: in.g.joined.Load() || named(in.history, in.h.cfg.Self), placed: in.applied.slot}
	if err := in.write(appliedKey(in.g.id), in.applied.encode()); err != nil {
		return err
	}
	if err := in.write(membersKey(in.g.id), members.encode()); err != nil {
		return err
	}
	return in.finishTable()
}

// write adds a row to the current table, or begins one.
func (in *incoming) write(key, value []byte) error {
	if in.writer == nil {
		name := tableName(in.g.id, in.stream, len(in.files))
		f, err := in.h.cfg.FS.Create(in.path(name), diskCategory)
		if err != nil {
			return err
		}
		in.files = append(in.files, name)
		in.writer = sstable.NewWriter(objstorageprovider.NewFileWritable(f), sstable.WriterOptions{
			TableFormat: in.h.db.FormatMajorVersion().MaxTableFormat(), BlockSize: 16 << 10})
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

// reset gives up what has arrived.
func (in *incoming) reset() {
	if in.writer != nil {
		// What it says about a file that is removed next does not matter.
		_ = in.writer.Close()
	}
	names := in.files
	if in.stream != 0 {
		names = append([]string{in.progressName()}, names...)
	}
	for _, name := range names {
		// What cannot be removed now, or is not there, is seen to by the next Open.
		_ = in.h.cfg.FS.Remove(in.path(name))
	}
	in.snapHead = snapHead{}
	in.next, in.total, in.size, in.done = 0, 0, 0, false
	in.files, in.writer, in.lastKey = nil, nil, nil
}

// close ends the table in the making and, when sound, notes that it is there.
// Nobody else uses it any more.
func (in *incoming) close(sound bool) error {
	if in.writer == nil {
		return nil
	}
	err := in.finishTable()
	if err == nil && sound {
		err = in.save()
	}
	return err
}

// tidy gives up a snapshot that is not needed any more.
func (in *incoming) tidy(applied uint64) {
	select {
	case <-in.turn:
		defer in.unlock()
	default:
		return // it arrives
	}
	if in.stream != 0 && !in.done && in.applied.slot <= applied {
		in.reset()
	}
}

// install puts the snapshot in the place of the group's state, between two
// entries, and returns when that is durable. It is the caller's turn.
func (g *Group) install(ctx context.Context) error {
	placed := newAnswer[error]()
	in := &g.incoming
	files := slices.Clone(in.files)
	for i, name := range files {
		files[i] = in.path(name)
	}
	head := in.snapHead
	in.files = nil // Pebble's from now on
	g.applier.do(func() error {
		changed, err := g.applier.replace(files, head)
		placed.give(err)
		if !changed {
			return nil // the sender is told, and tries again
		}
		return err
	})
	switch g.host.cfg.Sched.Wait(nil, placed.done, ctx.Done(), g.host.stop) {
	case env.GotA:
		// A file that stays says nothing new: the state is as far.
		_ = in.h.cfg.FS.Remove(in.path(in.progressName()))
		return placed.v
	case env.GotB:
		return sys.E(sys.Op("replica.Snapshot"), sys.Interrupted, ctx.Err())
	}
	return g.host.stopped("replica.Snapshot")
}

// replace swaps the group's state for the tables' rows, all at once. An error
// after the state has changed is the host's end.
func (a *applier) replace(files []string, to snapHead) (changed bool, err error) {
	h, slot := a.g.host, to.applied.slot
	if slot > a.at.slot {
		err = a.g.announce(slot)
	}
	if err == nil && a.g.Leading() != 0 { // since it was offered
		err = sys.E(sys.Op("replica.Snapshot"), sys.Unavailable, leads)
	}
	if err != nil || slot <= a.at.slot {
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
	a.g.replaced.Add(1)
	_, err = a.db.IngestAndExcise(context.Background(), files, nil, nil, groupRange(a.g.id))
	a.g.replaced.Add(1)
	if err != nil {
		return false, err
	}
	if err := a.db.Flush(); err != nil {
		return true, err
	}
	if err := a.load(); err != nil {
		return true, err
	}
	if a.at != to.applied || !a.members.history.Equal(to.history) {
		panic(fmt.Sprintf("replica: snapshot: state %v of %v expected, found %v of %v", to.applied, to.history, a.at, a.members.history))
	}
	h.installs.Add(1)
	h.cfg.Logger.Info("a snapshot is in place", "group", a.g.id, "slot", slot)
	a.g.mu.Lock()
	a.g.ownDigests = nil
	a.g.installed = installedSnapshot{paxos.Slot(slot), to.history}
	a.g.mu.Unlock()
	a.g.flushed.Store(max(a.g.flushed.Load(), slot))
	a.g.appliedTo(slot)
	h.wakeDriver()
	return true, nil
}

// announce notes in the log, durably, that a snapshot comes in the state's place:
// a log that knows nothing of it is an older one.
func (g *Group) announce(slot uint64) error {
	noted := newAnswer[error]()
	g.call(func(paxos.Time) {
		g.d.placing, g.d.stateDirty = slot, true
		p := g.host.pass()
		p.noted = append(p.noted, noted)
	})
	if g.host.cfg.Sched.Wait(nil, noted.done, g.host.stop, nil) == env.GotB {
		return g.host.stopped("replica.Snapshot")
	}
	return noted.v
}
