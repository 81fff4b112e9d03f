package embedded

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/goleak"

	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/meta/metatest"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/replica"
	"github.com/koinon/koinon/internal/replica/replicatest"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
)

// fake is a Store in memory. It spoils what it gave out as soon as it may, so
// that a Tx which keeps it is found out.
type fake struct {
	rows   map[string][]byte
	keys   []string // those of rows, and deleted ones
	sorted bool     // keys are in order, each once
	out    []byte   // what Get gave out last
}

func newFake() *fake { return &fake{rows: make(map[string][]byte)} }

func (f *fake) Get(key []byte) ([]byte, error) {
	for i := range f.out {
		f.out[i] = 0xAA
	}
	v, ok := f.rows[string(key)]
	if !ok {
		return nil, nil
	}
	f.out = append(f.out[:0], v...)
	return f.out, nil
}

func (f *fake) Set(key, value []byte) {
	n := len(f.rows)
	f.rows[string(key)] = value
	if len(f.rows) > n {
		f.keys = append(f.keys, string(key))
		f.sorted = false
	}
}

func (f *fake) Delete(key []byte) { delete(f.rows, string(key)) }

func (f *fake) Scan(lo, hi []byte, fn func(k, v []byte) bool) error {
	if !f.sorted {
		slices.Sort(f.keys)
		f.keys = slices.Compact(f.keys)
		f.sorted = true
	}
	i, _ := slices.BinarySearch(f.keys, string(lo))
	for _, k := range f.keys[i:] {
		if hi != nil && k >= string(hi) {
			return nil
		}
		row, ok := f.rows[k]
		if !ok {
			continue
		}
		key, value := []byte(k), bytes.Clone(row)
		more := fn(key, value)
		clear(key)
		clear(value)
		if !more {
			return nil
		}
	}
	return nil
}

func TestEngine(t *testing.T) {
	metatest.RunTx(t, func(*testing.T) meta.Tx { return NewTx(newFake()) })
}

// client is the tree on a group of one replica.
type client struct{ group *replica.Group }

func (c *client) Do(ctx context.Context, cmd *metapb.Command) (*metapb.Result, error) {
	body := pb.Marshal(cmd)
	out, local, err := c.group.Propose(ctx, rsm.Command{NS: rsm.NSMeta, Body: body})
	if err != nil {
		return nil, err
	}
	res := &metapb.Result{}
	if err := pb.Unmarshal(out, res); err != nil {
		return nil, err
	}
	if f := res.GetFailure(); f != nil {
		return nil, f.Err()
	}
	if _, ok := local.(*Outcome); !ok {
		return nil, fmt.Errorf("expected an *Outcome, found %T", local)
	}
	return res, nil
}

func (c *client) Query(ctx context.Context, q *metapb.Query) (*metapb.Answer, error) {
	var ans *metapb.Answer
	err := c.group.Read(ctx, rsm.NSMeta, func(r rsm.Reader) (err error) {
		ans, err = Read(r, q)
		return err
	})
	if err != nil {
		return nil, err
	}
	if f := ans.GetFailure(); f != nil {
		return nil, f.Err()
	}
	return ans, nil
}

// openGroup starts a host of one voter on a disk in memory and waits until it
// leads.
func openGroup(tb testing.TB) *replica.Group {
	tb.Helper()
	network := replicatest.NewNetwork(1)
	host, err := replica.Open(replica.Config{
		Dir: "state", FS: vfs.NewMem(), Clock: env.System{}, Cluster: "test", Self: 1,
		Voters: []replica.Peer{{ID: 1}}, Transport: network.Endpoint(1), ReserveBytes: -1,
		Tick: time.Millisecond, Heartbeat: 5 * time.Millisecond, ElectionTimeout: 20 * time.Millisecond,
		Lease: 15 * time.Millisecond,
	}, map[rsm.Namespace]rsm.Machine{rsm.NSMeta: Machine{}})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := host.Close(); err != nil {
			tb.Error(err)
		}
		network.Close()
	})
	group := host.Group(0)
	leads := make(chan struct{}, 1)
	stop := group.Watch(func(st rsm.Status) {
		if st.Role == rsm.Leader && st.Ready {
			select {
			case leads <- struct{}{}:
			default:
			}
		}
	})
	defer stop()
	select {
	case <-leads:
	case <-time.After(20 * time.Second):
		tb.Fatal("expected a leader within 20 s, found none")
	}
	return group
}

func TestReplicated(t *testing.T) {
	defer goleak.VerifyNone(t)
	t.Run("Suite", func(t *testing.T) {
		metatest.Run(t, func(t *testing.T) meta.Client { return &client{openGroup(t)} })
	})
}

// What a session reserved goes with the session.
func TestSessionEnded(t *testing.T) {
	group := openGroup(t)
	c := &client{group}
	ctx := context.Background()
	do := func(cmd *metapb.Command) *metapb.Result {
		t.Helper()
		res, err := c.Do(ctx, cmd)
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	do(&metapb.Command{Op: &metapb.Command_Format{Format: &metapb.Format{}}})
	session, err := group.OpenSession(ctx, "test")
	if err != nil {
		t.Fatal(err)
	}
	do(&metapb.Command{Op: &metapb.Command_AllocSlices{
		AllocSlices: &metapb.AllocSlices{Count: 10, Session: uint64(session)},
	}})
	if err := group.EndSession(ctx, session); err != nil {
		t.Fatal(err)
	}
	ans, err := c.Query(ctx, &metapb.Query{Op: &metapb.Query_ReadFreed{ReadFreed: &metapb.ReadFreed{}}})
	if err != nil {
		t.Fatal(err)
	}
	if len(ans.Chunks) != 1 || len(ans.Chunks[0].Chunk.Ranges) != 1 || ans.Chunks[0].Chunk.Ranges[0].Count != 10 {
		t.Fatalf("expected the 10 slices to be freed, found %v", ans)
	}
}

// A command that nobody understands is refused alike everywhere.
func TestApplyGarbage(t *testing.T) {
	f := newFake()
	for _, body := range [][]byte{nil, {0xff}, []byte("garbage")} {
		out, _ := apply(f, rsm.Stamp{TimeNs: 1}, body)
		res := &metapb.Result{}
		if err := pb.Unmarshal(out, res); err != nil {
			t.Fatal(err)
		}
		if res.Failure == nil {
			t.Fatalf("%x: expected a failure, found %v", body, res)
		}
	}
	if len(f.rows) > 0 {
		t.Fatalf("expected nothing to be written, found %d rows", len(f.rows))
	}
}

// The stamp's time counts, not the sender's.
func TestApplyStamps(t *testing.T) {
	f := newFake()
	body := pb.Marshal(&metapb.Command{TimeNs: 5, Op: &metapb.Command_Format{Format: &metapb.Format{}}})
	_, local := apply(f, rsm.Stamp{TimeNs: 7}, body)
	o, ok := local.(*Outcome)
	if !ok || len(o.Attrs) != 1 || o.Attrs[0].CtimeNs != 7 || o.Inos[0] != sys.RootIno {
		t.Fatalf("expected the root at time 7, found %+v", local)
	}
}

// Rows that do not decode are damage, and never an answer.
func TestDamage(t *testing.T) {
	f := newFake()
	tx := NewTx(f)
	f.Set(tx.key.ino(rowInode, sys.RootIno), []byte("garbage"))
	q := &metapb.Query{Op: &metapb.Query_GetAttr{GetAttr: &metapb.GetAttr{Ino: 1}}}
	if ans, err := Read(f, q); !sys.Is(err, sys.Corrupt) {
		t.Fatalf("expected damage, found %v, %v", ans, err)
	}
	f.Set(tx.key.counter(meta.CounterBytes), []byte("123"))
	q = &metapb.Query{Op: &metapb.Query_StatFs{}}
	if _, err := Read(f, q); err == nil || !strings.Contains(err.Error(), "8 bytes") {
		t.Fatalf("expected damage, found %v", err)
	}
	defer func() {
		if r := recover(); r == nil {
			t.Fatal("expected a command on damaged rows to panic")
		}
	}()
	body := pb.Marshal(&metapb.Command{Op: &metapb.Command_Unlink{Unlink: &metapb.Unlink{Parent: 1, Name: []byte("f")}}})
	apply(f, rsm.Stamp{}, body)
}
