package kv

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/koinon/koinon/internal/kv/kvpb"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
)

// memStore is rows in memory.
type memStore map[string][]byte

func (m memStore) Get(key []byte) ([]byte, error) { return m[string(key)], nil }
func (m memStore) Set(key, value []byte) {
	if value == nil {
		value = []byte{}
	}
	m[string(key)] = value
}
func (m memStore) Delete(key []byte) { delete(m, string(key)) }

func (m memStore) Scan(lo, hi []byte, fn func(key, value []byte) bool) error {
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if k >= string(lo) && (hi == nil || k < string(hi)) && !fn([]byte(k), m[k]) {
			return nil
		}
	}
	return nil
}

// bench is a machine over rows in memory.
type bench struct {
	t     fataler
	store memStore
	m     *Machine
	slot  uint64
}

type fataler interface {
	Helper()
	Fatalf(format string, args ...any)
}

func newBench(t fataler) *bench { return &bench{t: t, store: memStore{}, m: NewMachine()} }

func (b *bench) stamp(session uint64) rsm.Stamp {
	b.slot++
	return rsm.Stamp{Slot: b.slot, TimeNs: int64(b.slot) * 1e9, Session: sys.SessionID(session), Seq: b.slot}
}

// do runs a command; one that is refused must have left every row as it was.
func (b *bench) do(session uint64, cmd *kvpb.Command) *kvpb.Result {
	b.t.Helper()
	before := maps.Clone(b.store)
	raw := b.m.apply(b.store, b.stamp(session), pb.Marshal(cmd))
	res := &kvpb.Result{}
	if err := pb.Unmarshal(raw, res); err != nil {
		b.t.Fatalf("%v", err)
	}
	if (res.Failure != nil || res.Mismatch) && !maps.EqualFunc(before, b.store, bytes.Equal) {
		b.t.Fatalf("%v was refused and has changed something", cmd)
	}
	return res
}

func (b *bench) ok(session uint64, cmd *kvpb.Command) *kvpb.Result {
	b.t.Helper()
	res := b.do(session, cmd)
	if res.Failure != nil || res.Mismatch {
		b.t.Fatalf("%v: %v", cmd, res)
	}
	return res
}

func (b *bench) fails(session uint64, kind sys.Kind, cmd *kvpb.Command) {
	b.t.Helper()
	if res := b.do(session, cmd); sys.Kind(res.Failure.GetKind()) != kind {
		b.t.Fatalf("%v: expected %v, found %v", cmd, kind, res)
	}
}

func (b *bench) query(q *kvpb.Query) *kvpb.Answer {
	b.t.Helper()
	a, err := Read(b.store, q)
	if err != nil {
		b.t.Fatalf("%v", err)
	}
	return a
}

func (b *bench) get(key string, rev uint64) *kvpb.Entry {
	b.t.Helper()
	a := b.query(&kvpb.Query{Op: &kvpb.Query_Get{Get: &kvpb.Get{Key: []byte(key), Revision: rev}}})
	if a.Failure != nil {
		b.t.Fatalf("get %q at %d: %v", key, rev, a.Failure)
	}
	if len(a.Entries) == 0 {
		return nil
	}
	return a.Entries[0]
}

func (b *bench) history(from uint64, key string, prefix bool) []string {
	b.t.Helper()
	var out []string
	for more := true; more; {
		var r *kvpb.WatchReply
		var err error
		r, more, err = readHistory(b.store, &kvpb.WatchRequest{Key: []byte(key), Prefix: prefix}, from)
		if err != nil || r.Failure != nil {
			b.t.Fatalf("history from %d: %v %v", from, err, r.GetFailure())
		}
		for _, e := range r.Events {
			out = append(out, show(e))
		}
		from = r.Revision + 1
	}
	return out
}

func show(e *kvpb.Event) string {
	if e.Deleted {
		return fmt.Sprintf("%d -%s", e.Entry.ModRevision, e.Entry.Key)
	}
	return fmt.Sprintf("%d %s=%s", e.Entry.ModRevision, e.Entry.Key, e.Entry.Value)
}

func txn(changes ...*kvpb.Change) *kvpb.Command {
	return &kvpb.Command{Op: &kvpb.Command_Txn{Txn: &kvpb.Txn{Changes: changes}}}
}

func put(key, value string) *kvpb.Change {
	return &kvpb.Change{Key: []byte(key), Change: &kvpb.Change_Put{Put: &kvpb.Put{Value: []byte(value)}}}
}

func putEphemeral(key, value string) *kvpb.Change {
	c := put(key, value)
	c.GetPut().Ephemeral = true
	return c
}

func del(key string) *kvpb.Change {
	return &kvpb.Change{Key: []byte(key), Change: &kvpb.Change_Delete{Delete: &kvpb.Delete{}}}
}

func openCmd() *kvpb.Command {
	return &kvpb.Command{Op: &kvpb.Command_Open{Open: &kvpb.Open{TtlNs: int64(10 * time.Second), Owner: "somebody"}}}
}

func acquire(name string) *kvpb.Command {
	return &kvpb.Command{Op: &kvpb.Command_Acquire{Acquire: &kvpb.Acquire{Name: []byte(name)}}}
}

func try(name string) *kvpb.Command {
	c := acquire(name)
	c.GetAcquire().Try = true
	return c
}

func release(name string) *kvpb.Command {
	return &kvpb.Command{Op: &kvpb.Command_Release{Release: &kvpb.Release{Name: []byte(name)}}}
}

func compactCmd(revisions, bytes uint64) *kvpb.Command {
	return &kvpb.Command{Op: &kvpb.Command_Compact{Compact: &kvpb.Compact{Revisions: revisions, Bytes: bytes, EventsMax: 1000}}}
}

func expectRev(t *testing.T, res *kvpb.Result, rev uint64) {
	t.Helper()
	if res.Revision != rev {
		t.Fatalf("expected revision %d, found %v", rev, res)
	}
}

func TestRevisions(t *testing.T) {
	b := newBench(t)
	expectRev(t, b.ok(0, txn(put("a", "1"))), 1)
	expectRev(t, b.ok(0, txn(put("b", "1"), put("a", "2"))), 2)
	expectRev(t, b.ok(0, txn(del("missing"))), 2)
	expectRev(t, b.ok(0, txn(del("a"))), 3)
	expectRev(t, b.ok(0, txn(put("a", "3"))), 4)
	want := &kvpb.Entry{Key: []byte("a"), Value: []byte("3"), ModRevision: 4, CreateRevision: 4, Version: 1, Size: 1}
	if got := b.get("a", 0); !proto.Equal(got, want) {
		t.Errorf("expected %v, found %v", want, got)
	}
	want = &kvpb.Entry{Key: []byte("a"), Value: []byte("2"), ModRevision: 2, CreateRevision: 1, Version: 2, Size: 1}
	if got := b.get("a", 2); !proto.Equal(got, want) {
		t.Errorf("expected %v at revision 2, found %v", want, got)
	}
	if got := b.get("a", 3); got != nil {
		t.Errorf("deleted at revision 3, found %v", got)
	}
	got := strings.Join(b.history(1, "", true), ", ")
	if want := "1 a=1, 2 b=1, 2 a=2, 3 -a, 4 a=3"; got != want {
		t.Errorf("expected %q, found %q", want, got)
	}
	if got := strings.Join(b.history(2, "a", false), ", "); got != "2 a=2, 3 -a, 4 a=3" {
		t.Errorf("a watch of a alone found %q", got)
	}
}

func TestCompare(t *testing.T) {
	b := newBench(t)
	b.ok(0, txn(put("a", "1")))
	b.ok(7, openCmd())
	fence := b.ok(7, acquire("lock")).Fence
	is := func(c *kvpb.Compare) bool {
		cmd := txn(put("b", "x"))
		cmd.GetTxn().Compares = []*kvpb.Compare{c}
		res := b.do(0, cmd)
		if res.Mismatch && (len(res.Found) != 1 || !bytes.Equal(res.Found[0].Key, c.Key)) {
			t.Errorf("%v: found is %v", c, res.Found)
		}
		return !res.Mismatch
	}
	tests := []struct {
		cmp  *kvpb.Compare
		want bool
	}{
		{&kvpb.Compare{Key: []byte("a"), Want: &kvpb.Compare_Value{Value: []byte("1")}}, true},
		{&kvpb.Compare{Key: []byte("a"), Want: &kvpb.Compare_Value{Value: []byte("2")}}, false},
		{&kvpb.Compare{Key: []byte("a"), Want: &kvpb.Compare_Value{Value: nil}}, false},
		{&kvpb.Compare{Key: []byte("x"), Want: &kvpb.Compare_Value{Value: nil}}, false},
		{&kvpb.Compare{Key: []byte("a"), Want: &kvpb.Compare_ModRevision{ModRevision: 1}}, true},
		{&kvpb.Compare{Key: []byte("a"), Want: &kvpb.Compare_ModRevision{ModRevision: 0}}, false},
		{&kvpb.Compare{Key: []byte("x"), Want: &kvpb.Compare_ModRevision{ModRevision: 0}}, true},
		{&kvpb.Compare{Key: []byte("lock"), Want: &kvpb.Compare_Fence{Fence: fence}}, true},
		{&kvpb.Compare{Key: []byte("lock"), Want: &kvpb.Compare_Fence{Fence: fence - 1}}, false},
		{&kvpb.Compare{Key: []byte("other"), Want: &kvpb.Compare_Fence{Fence: 0}}, false},
	}
	for _, test := range tests {
		if got := is(test.cmp); got != test.want {
			t.Errorf("%v: %v", test.cmp, got)
		}
	}
}

func TestRefusals(t *testing.T) {
	b := newBench(t)
	long, large := strings.Repeat("k", KeyMax+1), strings.Repeat("v", ValueMax+1)
	b.fails(0, sys.Invalid, txn(put("", "v")))
	b.fails(0, sys.NameTooLong, txn(put(long, "v")))
	b.fails(0, sys.TooBig, txn(put("k", large)))
	b.fails(0, sys.Invalid, txn(put("k", "1"), del("k")))
	b.fails(0, sys.Invalid, txn(&kvpb.Change{Key: []byte("k")}))
	b.fails(0, sys.NotSupported, &kvpb.Command{})
	var many []*kvpb.Change
	for i := range ChangesMax + 1 {
		many = append(many, put(fmt.Sprint(i), ""))
	}
	b.fails(0, sys.TooBig, txn(many...))
	var heavy []*kvpb.Change
	for i := range 5 {
		heavy = append(heavy, put(fmt.Sprint(i), large[:ValueMax]))
	}
	b.fails(0, sys.TooBig, txn(heavy...))
	b.fails(5, sys.Invalid, txn(putEphemeral("k", "v")))
	b.fails(5, sys.Invalid, acquire("l"))
	b.fails(5, sys.NotExist, release("l"))
	b.fails(5, sys.Invalid, &kvpb.Command{Op: &kvpb.Command_Open{Open: &kvpb.Open{TtlNs: 1}}})
	b.ok(5, openCmd())
	b.fails(5, sys.Exist, openCmd())
	for i := range BoundMax {
		b.m.apply(b.store, b.stamp(5), pb.Marshal(txn(putEphemeral(fmt.Sprint(i), ""))))
	}
	b.fails(5, sys.Busy, txn(putEphemeral("k", "")))
	b.fails(5, sys.Busy, acquire("l"))
	if res := b.m.apply(b.store, b.stamp(0), []byte{0xff}); !bytes.Contains(res, []byte("1 bytes are no *kvpb.Command")) {
		t.Errorf("garbage was answered with %q", res)
	}
}

func TestEphemeralKeys(t *testing.T) {
	b := newBench(t)
	b.ok(5, openCmd())
	b.ok(6, openCmd())
	b.ok(5, txn(putEphemeral("mine", "1"), putEphemeral("kept", "1"), putEphemeral("taken", "1"), putEphemeral("gone", "1")))
	b.ok(0, txn(put("kept", "2")))             // is nobody's now
	b.ok(6, txn(putEphemeral("taken", "2")))   // belongs to 6
	b.ok(0, txn(del("gone"), put("x", "..."))) // is there no more
	b.m.ended(b.store, b.stamp(0), 5)
	if b.get("mine", 0) != nil || b.get("kept", 0) == nil || b.get("taken", 0) == nil {
		t.Errorf("the end of a session took the wrong keys: %v", b.history(1, "", true))
	}
	if got := b.history(5, "", true); !slices.Equal(got, []string{"5 -mine"}) {
		t.Errorf("the end of the session is %q", got)
	}
	b.m.ended(b.store, b.stamp(0), 6)
	if b.get("taken", 0) != nil {
		t.Error("a key outlives its session")
	}
	for k := range b.store {
		if k[0] == rowBound || k[0] == rowLease {
			t.Errorf("row %q is left of sessions that have ended", k)
		}
	}
	before := len(b.store)
	b.m.ended(b.store, b.stamp(0), 99) // never opened here
	if len(b.store) != before {
		t.Error("the end of a strange session changed something")
	}
}

func TestLocks(t *testing.T) {
	b := newBench(t)
	for s := uint64(1); s <= 4; s++ {
		b.ok(s, openCmd())
	}
	first := b.ok(1, acquire("l")).Fence
	if first == 0 {
		t.Fatal("a free lock was not given")
	}
	b.fails(1, sys.Busy, acquire("l"))
	if res := b.do(2, try("l")); !res.Mismatch || res.Holder.GetSession() != 1 || res.Holder.Owner != "somebody" {
		t.Errorf("a try of a held lock: %v", res)
	}
	for s := uint64(2); s <= 4; s++ {
		if res := b.ok(s, acquire("l")); res.Fence != 0 || res.Holder.GetFence() != first {
			t.Errorf("a held lock was given: %v", res)
		}
	}
	at := b.ok(2, acquire("l")).Revision // asks again: keeps its place
	if rev := b.ok(2, acquire("l")).Revision; rev != at {
		t.Errorf("asking again took a revision")
	}
	holds := func(session uint64, waiting ...uint64) uint64 {
		t.Helper()
		a := b.query(&kvpb.Query{Op: &kvpb.Query_Locks{Locks: &kvpb.Locks{}}})
		if len(a.Locks) != 1 || a.Locks[0].Session != session || string(a.Locks[0].Name) != "l" {
			t.Fatalf("expected session %d to hold it, found %v", session, a.Locks)
		}
		var found []uint64
		for _, w := range a.Locks[0].Waiters {
			found = append(found, w.Session)
		}
		if !slices.Equal(found, waiting) {
			t.Fatalf("expected %v to wait, found %v", waiting, found)
		}
		return a.Locks[0].Fence
	}
	holds(1, 2, 3, 4)
	b.ok(3, release("l")) // gives up its place
	holds(1, 2, 4)
	b.ok(1, release("l"))
	second := holds(2, 4)
	b.m.ended(b.store, b.stamp(0), 2)
	third := holds(4)
	if !(first < second && second < third) {
		t.Errorf("tokens do not rise: %d, %d, %d", first, second, third)
	}
	b.ok(4, release("l"))
	if fourth := b.ok(3, acquire("l")).Fence; fourth <= third {
		t.Errorf("a lock that was free in between has token %d after %d", fourth, third)
	}
	holds(3)
}

func TestCompaction(t *testing.T) {
	b := newBench(t)
	for i := range 100 {
		b.ok(0, txn(put(fmt.Sprint("k", i%10), fmt.Sprint(i)), put("hot", fmt.Sprint(i))))
	}
	b.ok(0, txn(del("k3")))
	b.ok(0, compactCmd(50, 1<<30))
	if a := b.query(&kvpb.Query{Op: &kvpb.Query_Get{Get: &kvpb.Get{Key: []byte("hot"), Revision: 50}}}); sys.Kind(a.Failure.GetKind()) != sys.Stale || a.Oldest != 51 {
		t.Errorf("revision 50 is compacted: %v", a)
	}
	r, _, err := readHistory(b.store, &kvpb.WatchRequest{Prefix: true}, 51)
	if err != nil || sys.Kind(r.Failure.GetKind()) != sys.Stale || r.Oldest != 52 {
		t.Errorf("a watch from 51: %v %v", r, err)
	}
	for rev := uint64(51); rev <= 100; rev++ {
		if got := b.get("hot", rev); string(got.GetValue()) != fmt.Sprint(rev-1) {
			t.Errorf("revision %d of hot is %v", rev, got)
		}
		if got, want := b.get("k0", rev), (rev-1)/10*10; string(got.GetValue()) != fmt.Sprint(want) {
			t.Errorf("revision %d of k0 is %v, not %d", rev, got, want)
		}
	}
	b.ok(0, compactCmd(0, 0))
	rows := map[byte]int{}
	for k := range b.store {
		rows[k[0]]++
	}
	if rows[rowVersion] != 10 || rows[rowKey] != 10 || rows[rowStep] != 0 {
		t.Errorf("expected only the 10 live keys to be left, found %v", rows)
	}
	if st := decodeState(b.store[string(rowState)]); st.bytes != 0 || st.compacted != st.rev {
		t.Errorf("state is %+v", st)
	}
}

func TestPages(t *testing.T) {
	b := newBench(t)
	for i := range 25 {
		b.ok(0, txn(put(fmt.Sprintf("p/%02d", i), "v"), put(fmt.Sprintf("q/%02d", i), "v")))
	}
	at := uint64(25)
	var found []string
	var next []byte
	for more := true; more; {
		a := b.query(&kvpb.Query{Op: &kvpb.Query_List{List: &kvpb.List{Prefix: []byte("p/"), After: next, Limit: 10, Revision: at}}})
		for _, e := range a.Entries {
			found = append(found, string(e.Key))
		}
		next, more = a.Next, a.More
		// What happens between two pages is not in a list of one revision.
		b.ok(0, txn(del("p/20"), put("p/21", "w"), put("p/30", "v")))
	}
	if len(found) != 25 || !slices.IsSorted(found) || slices.Contains(found, "p/30") {
		t.Errorf("the pages hold %q", found)
	}
}
