package dump

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"io"
	"time"

	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// sliceGap is by how much a load raises the highest slice number. What a cluster
// wrote after it was dumped is still on its nodes: a number that comes again
// would lead to those bytes.
const sliceGap = 1 << 32

// rangesMax is how many ranges a row of the queue of freed slices takes.
const rangesMax = 256

// clearStep is how many rows one step of clearing deletes.
const clearStep = 2000

// Target takes the steps of a load, each exactly once however often it comes.
type Target interface {
	Load(ctx context.Context, l *metapb.Load) (*metapb.Result, error)
}

// Verify reads a dump to its end. It fails with Corrupt when one byte of it is
// not as it was written.
func Verify(r io.Reader) (*Summary, error) {
	d, h, err := newReader(r)
	if err != nil {
		return nil, err
	}
	defer d.close()
	sum := newSummary(h)
	for {
		rows, err := d.next()
		if err != nil {
			return nil, err
		}
		if rows == nil {
			return sum, nil
		}
		sum.count(rows)
	}
}

// Options of Load.
type Options struct {
	// Check, unless nil, may refuse the dump by its header before anything is
	// changed.
	Check func(h *metapb.DumpHeader) error
	// Now is the time, in ns since the epoch.
	Now int64
}

// Load fills a tree that is new, or is missing because a load has not ended.
// When it fails after its first step the tree is missing, and another Load
// begins from the start.
func Load(ctx context.Context, r io.Reader, t Target, o Options) (*Summary, error) {
	d, h, err := newReader(r)
	if err != nil {
		return nil, err
	}
	defer d.close()
	if o.Check != nil {
		if err := o.Check(h); err != nil {
			return nil, err
		}
	}
	l := &loader{ctx: ctx, t: t, id: newID(), now: o.Now}
	if err := l.begin(); err != nil {
		return nil, err
	}
	sum := newSummary(h)
	for {
		rows, err := d.next()
		if err != nil {
			return nil, err
		}
		if rows == nil {
			break
		}
		sum.count(rows)
		if err := l.send(l.take(rows)); err != nil {
			return nil, err
		}
	}
	return sum, l.end()
}

func newID() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // which never fails
	return binary.BigEndian.Uint64(b[:])>>1 | 1
}

// loader is a load under way.
type loader struct {
	ctx   context.Context
	t     Target
	id    uint64
	now   int64
	batch uint64
	root  *metapb.Attr
	slice int64           // the highest slice number of the dump
	freed int64           // the row of the queue of freed slices that was written last
	ended []*metapb.Range // reserved by sessions that do not exist here
}

// begin takes the tree away, and what is left of an earlier load.
func (l *loader) begin() error {
	if _, err := l.step(&metapb.Load{Step: &metapb.Load_Begin{Begin: &metapb.LoadBegin{}}}); err != nil {
		return err
	}
	for {
		res, err := l.step(&metapb.Load{Step: &metapb.Load_Clear{Clear: &metapb.LoadClear{Limit: clearStep}}})
		if err != nil || res.Purged == 0 {
			return err
		}
	}
}

// take sets aside what does not go over as it is.
func (l *loader) take(rows []*metapb.Row) []*metapb.Row {
	kept := rows[:0]
	for _, r := range rows {
		switch r := r.Row.(type) {
		case *metapb.Row_Inode:
			if sys.Ino(r.Inode.GetIno()) == sys.RootIno {
				l.root = r.Inode
				continue
			}
		case *metapb.Row_Counter:
			switch meta.Counter(r.Counter.GetCounter()) {
			case meta.CounterSlice:
				l.slice = r.Counter.Value
				continue
			case meta.CounterFreed:
				l.freed = r.Counter.Value
				continue
			}
		case *metapb.Row_Chunk:
			if sys.Ino(r.Chunk.GetIno()) == sys.PendingIno {
				l.ended = append(l.ended, r.Chunk.GetChunk().GetRanges()...)
				continue
			}
		}
		kept = append(kept, r)
	}
	return kept
}

func (l *loader) step(s *metapb.Load) (*metapb.Result, error) {
	s.Id = l.id
	return l.t.Load(l.ctx, s)
}

func (l *loader) send(rows []*metapb.Row) error {
	if len(rows) == 0 {
		return nil
	}
	l.batch++
	_, err := l.step(&metapb.Load{Step: &metapb.Load_Rows{Rows: &metapb.LoadRows{Batch: l.batch, Rows: rows}}})
	return err
}

// end queues what writers of the dumped cluster had reserved, for none of them
// comes to commit it, and brings the root.
func (l *loader) end() error {
	rows := []*metapb.Row{}
	for ; len(l.ended) > 0; l.ended = l.ended[min(rangesMax, len(l.ended)):] {
		if l.freed++; uint32(l.freed) == 0 {
			l.freed++
		}
		c := &metapb.Chunk{Ranges: l.ended[:min(rangesMax, len(l.ended))], FreedNs: l.now}
		rows = append(rows, &metapb.Row{Row: &metapb.Row_Chunk{Chunk: &metapb.ChunkRow{Ino: uint64(sys.FreedIno), Number: uint32(l.freed), Chunk: c}}})
	}
	for c, n := range map[meta.Counter]int64{meta.CounterFreed: l.freed, meta.CounterSlice: l.slice + sliceGap} {
		rows = append(rows, &metapb.Row{Row: &metapb.Row_Counter{Counter: &metapb.CounterRow{Counter: uint32(c), Value: n}}})
	}
	if err := l.send(rows); err != nil {
		return err
	}
	_, err := l.step(&metapb.Load{Step: &metapb.Load_End{End: &metapb.LoadEnd{Batch: l.batch, Root: l.root}}})
	return err
}

// Created is when a dump was made.
func (s *Summary) Created() time.Time { return time.Unix(0, s.CreatedNs) }
