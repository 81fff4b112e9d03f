package kv

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/koinon/koinon/internal/kv/kvpb"
)

// modelKey is a key as the model has it.
type modelKey struct {
	value             string
	created, mod, ver uint64
	session           uint64
}

// modelLock is a lock as the model has it: the holder first, then who waits.
type modelLock struct {
	queue []uint64
	fence uint64
}

// model is the coordination service in maps: the past is copies of them.
type model struct {
	rev       uint64
	compacted uint64
	past      []map[string]modelKey // by revision
	now       map[string]modelKey
	locks     map[string]*modelLock
	open      map[uint64]bool
	events    []string // all that ever was
}

// change makes a revision of what do changes, if it says that it did.
func (m *model) change(do func(rev uint64) bool) {
	if !do(m.rev + 1) {
		return
	}
	m.rev++
	m.past = append(m.past, maps.Clone(m.now))
}

func (m *model) put(rev uint64, key, value string, session uint64) {
	old, there := m.now[key]
	k := modelKey{value: value, created: rev, mod: rev, ver: 1, session: session}
	if there {
		k.created, k.ver = old.created, old.ver+1
	}
	m.now[key] = k
	m.events = append(m.events, fmt.Sprintf("%d %s=%s", rev, key, value))
}

func (m *model) del(rev uint64, key string) bool {
	if _, there := m.now[key]; !there {
		return false
	}
	delete(m.now, key)
	m.events = append(m.events, fmt.Sprintf("%d -%s", rev, key))
	return true
}

// drop takes a session out of a lock's queue.
func (m *model) drop(rev, session uint64, name string) bool {
	l := m.locks[name]
	if l == nil {
		return false
	}
	i := slices.Index(l.queue, session)
	if i < 0 {
		return false
	}
	l.queue = slices.Delete(l.queue, i, i+1)
	if len(l.queue) == 0 {
		delete(m.locks, name)
	} else if i == 0 {
		l.fence = rev
	}
	return true
}

// machineAndModel runs the same on both.
type machineAndModel struct {
	*bench
	m model
}

var (
	modelKeys     = rapid.SampledFrom([]string{"a", "a\x00", "ab", "b", "b\xff", "b\xff\xff", "c/1", "c/2"})
	modelLocks    = rapid.SampledFrom([]string{"l", "l2", "m"})
	modelSessions = rapid.Uint64Range(1, 4)
)

func (x *machineAndModel) openOne(t *rapid.T) {
	s := modelSessions.Draw(t, "session")
	if x.do(s, openCmd()).Failure == nil == x.m.open[s] {
		t.Fatalf("session %d opened: %v", s, x.m.open[s])
	}
	x.m.open[s] = true
}

func (x *machineAndModel) endOne(t *rapid.T) {
	s := modelSessions.Draw(t, "session")
	x.bench.m.ended(x.store, x.stamp(0), 0)
	x.bench.m.ended(x.store, x.stamp(s), x.stamp(s).Session)
	x.m.change(func(rev uint64) (changed bool) {
		for _, key := range slices.Sorted(maps.Keys(x.m.now)) {
			if x.m.now[key].session == s {
				changed = x.m.del(rev, key) || changed
			}
		}
		for _, name := range slices.Sorted(maps.Keys(x.m.locks)) {
			changed = x.m.drop(rev, s, name) || changed
		}
		return changed
	})
	delete(x.m.open, s)
}

func (x *machineAndModel) txn(t *rapid.T) {
	s := modelSessions.Draw(t, "session")
	keys := rapid.SliceOfNDistinct(modelKeys, 1, 3, rapid.ID).Draw(t, "keys")
	cmd := txn()
	var apply []func(rev uint64) bool
	for _, key := range keys {
		value := rapid.SampledFrom([]string{"", "x", "yy"}).Draw(t, "value")
		switch rapid.IntRange(0, 3).Draw(t, "what") {
		case 0:
			cmd.GetTxn().Changes = append(cmd.GetTxn().Changes, del(key))
			apply = append(apply, func(rev uint64) bool { return x.m.del(rev, key) })
		case 1:
			if x.m.open[s] {
				cmd.GetTxn().Changes = append(cmd.GetTxn().Changes, putEphemeral(key, value))
				apply = append(apply, func(rev uint64) bool { x.m.put(rev, key, value, s); return true })
			}
		default:
			cmd.GetTxn().Changes = append(cmd.GetTxn().Changes, put(key, value))
			apply = append(apply, func(rev uint64) bool { x.m.put(rev, key, value, 0); return true })
		}
	}
	holds := true
	if rapid.Bool().Draw(t, "compare") {
		key := modelKeys.Draw(t, "compared")
		want := rapid.Uint64Range(0, 3).Draw(t, "back")
		want = x.m.now[key].mod - min(x.m.now[key].mod, want)
		holds = x.m.now[key].mod == want
		cmd.GetTxn().Compares = []*kvpb.Compare{{Key: []byte(key), Want: &kvpb.Compare_ModRevision{ModRevision: want}}}
	}
	res := x.do(s, cmd)
	if res.Mismatch == holds || res.Failure != nil {
		t.Fatalf("%v: %v", cmd, res)
	}
	if holds {
		x.m.change(func(rev uint64) (changed bool) {
			for _, f := range apply {
				changed = f(rev) || changed
			}
			return changed
		})
	}
}

func (x *machineAndModel) acquire(t *rapid.T) {
	s, name := modelSessions.Draw(t, "session"), modelLocks.Draw(t, "name")
	res := x.do(s, acquire(name))
	l := x.m.locks[name]
	switch {
	case !x.m.open[s] || l != nil && l.queue[0] == s:
		if res.Failure == nil {
			t.Fatalf("session %d got %v", s, res)
		}
	case l == nil:
		x.m.change(func(rev uint64) bool {
			x.m.locks[name] = &modelLock{queue: []uint64{s}, fence: rev}
			return true
		})
		if res.Fence != x.m.rev {
			t.Fatalf("a free lock was answered with %v", res)
		}
	case !slices.Contains(l.queue, s):
		x.m.change(func(uint64) bool { l.queue = append(l.queue, s); return true })
		fallthrough
	default:
		if res.Fence != 0 || res.Holder.Session != l.queue[0] || res.Holder.Fence != l.fence {
			t.Fatalf("a held lock was answered with %v", res)
		}
	}
}

func (x *machineAndModel) release(t *rapid.T) {
	s, name := modelSessions.Draw(t, "session"), modelLocks.Draw(t, "name")
	res := x.do(s, release(name))
	was := x.m.rev
	x.m.change(func(rev uint64) bool { return x.m.drop(rev, s, name) })
	if (res.Failure == nil) != (x.m.rev > was) {
		t.Fatalf("session %d released: %v", s, res)
	}
}

func (x *machineAndModel) compact(t *rapid.T) {
	keep := rapid.Uint64Range(0, 10).Draw(t, "keep")
	x.do(0, compactCmd(keep, 1<<30))
	x.m.compacted = max(x.m.compacted, x.m.rev-min(x.m.rev, keep))
}

// check compares the present, one revision of the past, and all history.
func (x *machineAndModel) check(t *rapid.T) {
	st := decodeState(x.store[string(rowState)])
	if st.rev != x.m.rev || st.compacted != x.m.compacted {
		t.Fatalf("state is %+v, expected revision %d, compacted %d", st, x.m.rev, x.m.compacted)
	}
	x.checkAt(t, x.m.rev, x.m.now)
	if x.m.rev > 0 {
		at := rapid.Uint64Range(max(1, x.m.compacted), x.m.rev).Draw(t, "at")
		x.checkAt(t, at, x.m.past[at-1])
	}
	var events []string
	for _, e := range x.m.events {
		var rev uint64
		if fmt.Sscanf(e, "%d", &rev); rev > x.m.compacted {
			events = append(events, e)
		}
	}
	slices.Sort(events)
	found := x.history(x.m.compacted+1, "", true)
	slices.Sort(found) // changes of one revision have no order
	if !slices.Equal(found, events) {
		t.Fatalf("history is\n%q, expected\n%q", found, events)
	}
	a := x.query(&kvpb.Query{Op: &kvpb.Query_Locks{Locks: &kvpb.Locks{}}})
	for _, l := range a.Locks {
		queue := []uint64{l.Session}
		for _, w := range l.Waiters {
			queue = append(queue, w.Session)
		}
		if want := x.m.locks[string(l.Name)]; want == nil || !slices.Equal(queue, want.queue) || l.Fence != want.fence {
			t.Fatalf("lock %q is %v, expected %v", l.Name, l, want)
		}
	}
	if len(a.Locks) != len(x.m.locks) {
		t.Fatalf("expected %d locks, found %v", len(x.m.locks), a.Locks)
	}
}

func (x *machineAndModel) checkAt(t *rapid.T, rev uint64, want map[string]modelKey) {
	a := x.query(&kvpb.Query{Op: &kvpb.Query_List{List: &kvpb.List{Revision: rev}}})
	found := map[string]modelKey{}
	for _, e := range a.Entries {
		k := modelKey{string(e.Value), e.CreateRevision, e.ModRevision, e.Version, e.Session}
		found[string(e.Key)] = k
		if got := x.get(string(e.Key), rev); got.GetModRevision() != k.mod || string(got.Value) != k.value {
			t.Fatalf("a list has %q as %v, a get as %v", e.Key, k, got)
		}
	}
	if !maps.Equal(found, want) {
		t.Fatalf("revision %d is\n%v, expected\n%v", rev, found, want)
	}
	if !slices.IsSortedFunc(a.Entries, func(a, b *kvpb.Entry) int { return strings.Compare(string(a.Key), string(b.Key)) }) {
		t.Fatalf("the list is not in order: %v", a.Entries)
	}
}

func TestMachineIsTheModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x := &machineAndModel{bench: newBench(t), m: model{now: map[string]modelKey{}, locks: map[string]*modelLock{}, open: map[uint64]bool{}}}
		t.Repeat(map[string]func(*rapid.T){
			"open": x.openOne, "end": x.endOne, "txn": x.txn, "acquire": x.acquire, "release": x.release, "compact": x.compact, "": x.check,
		})
	})
}
