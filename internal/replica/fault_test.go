package replica_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/koinon/koinon/internal/replica"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
)

// load has callers add to a counter, each command under its session until it
// is done, and returns what ends it and how many were done.
func (c *cluster) load(callers int) (stop func() uint64) {
	c.t.Helper()
	ctx, cancel := context.WithCancel(c.ctx())
	var wg sync.WaitGroup
	var done atomic.Uint64
	for i := range callers {
		session, err := c.openSession(fmt.Sprint("caller", i))
		if err != nil {
			c.t.Fatal(err)
		}
		wg.Go(func() {
			for seq := uint64(1); ctx.Err() == nil; seq++ {
				// The command is finished even when the load is over, so that
				// its outcome is known.
				_, err := c.do(c.ctx(), rsm.Command{Session: session, Seq: seq, Ack: seq - 1, NS: nsTest, Body: add("x")})
				if err != nil {
					c.t.Errorf("session %d seq %d: %v", session, seq, err)
					return
				}
				done.Add(1)
			}
		})
	}
	return func() uint64 {
		cancel()
		wg.Wait()
		return done.Load()
	}
}

func (c *cluster) openSession(name string) (sys.SessionID, error) {
	for {
		id, err := c.group(c.leader()).OpenSession(c.ctx(), name)
		if k := sys.KindOf(err); err == nil || k != sys.NotLeader && k != sys.Unavailable {
			return id, err
		}
	}
}

// agree waits until all replicas have the same counter.
func (c *cluster) agree(want uint64) {
	c.t.Helper()
	for id := sys.NodeID(1); id <= sys.NodeID(c.n.Load()); id++ {
		c.await(fmt.Sprintf("%v to count %d", id, want), func() bool { return c.count(id, "x") == want })
	}
}

// TestCrashesUnderLoad crashes nodes, with random parts of what was not synced
// lost, on a network that loses and repeats messages: every command counts
// exactly once, on every replica.
func TestCrashesUnderLoad(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.net.SetFaults(0.02, 0.02)
	stop := c.load(8)
	rng := rand.New(rand.NewPCG(3, 3))
	for end := time.Now().Add(4 * time.Second); time.Now().Before(end); {
		id := sys.NodeID(rng.IntN(3) + 1)
		c.crash(id)
		c.open(id)
		// Time for the others to go on, and for a leader to be found.
		time.Sleep(time.Duration(rng.IntN(300)) * time.Millisecond)
	}
	n := stop()
	c.net.SetFaults(0, 0)
	if n == 0 {
		t.Fatal("progress expected, found none")
	}
	c.agree(n)
	t.Logf("%d commands", n)
}

// TestPartitionsUnderLoad cuts links in one direction at a time.
func TestPartitionsUnderLoad(t *testing.T) {
	c := newCluster(t, 3, nil)
	stop := c.load(4)
	rng := rand.New(rand.NewPCG(4, 4))
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); {
		from := sys.NodeID(rng.IntN(3) + 1)
		to := from%3 + 1
		c.net.Cut(from, to, true)
		time.Sleep(time.Duration(rng.IntN(200)) * time.Millisecond)
		c.net.Cut(from, to, false)
	}
	n := stop()
	c.agree(n)
	t.Logf("%d commands", n)
}

// poke changes bytes of what a node's log holds. Its first record is at 4096.
func poke(t *testing.T, fs vfs.FS, at int64) {
	t.Helper()
	pokeWith(t, fs, at, strings.Repeat("damage", 20))
}

func pokeWith(t *testing.T, fs vfs.FS, at int64, what string) {
	t.Helper()
	names, err := fs.List("/data/log")
	if err != nil || len(names) == 0 {
		t.Fatalf("list: %v, %v", names, err)
	}
	name := names[0]
	for _, n := range names {
		name = min(name, n)
	}
	f, err := fs.OpenReadWrite("/data/log/"+name, vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte(what), at); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// logged counts the errors that say something.
type logged struct {
	slog.Handler
	words string
	n     atomic.Int32
}

func (l *logged) Enabled(context.Context, slog.Level) bool { return true }

func (l *logged) Handle(_ context.Context, r slog.Record) error {
	text := r.Message
	r.Attrs(func(a slog.Attr) bool { text += " " + a.String(); return true })
	if r.Level >= slog.LevelError && strings.Contains(text, l.words) && strings.Contains(text, "move /data away") {
		l.n.Add(1)
	}
	return nil
}

func TestDamagedReplicaDoesNotVoteUntilRepaired(t *testing.T) {
	told := &logged{words: "does not vote"}
	c := newCluster(t, 3, func(cfg *replica.Config) { cfg.Logger = slog.New(told) })
	for range 100 {
		c.must(add("x"))
	}
	victim, other := c.follower(), sys.NodeID(0)
	l := c.leader()
	for id := sys.NodeID(1); id <= 3; id++ {
		if id != l && id != victim {
			other = id
		}
	}
	// What it wrote last, a crash could have torn. It may have written all it
	// has so far at once, so one more has to follow.
	c.await("all at the victim", func() bool { return c.count(victim, "x") == 100 })
	c.must(add("x"))
	c.await("one more write at the victim", func() bool { return c.count(victim, "x") == 101 })
	c.close(victim)
	poke(t, c.fs[victim], 8192)
	// Alone with a damaged one the leader cannot go on.
	c.close(other)
	c.close(l)
	for start := range int32(2) { // the second start finds the damage known
		c.open(victim)
		if d := c.group(victim).Status().Damaged; !strings.Contains(d, "docs/operating/repair.md") || told.n.Load() != start+1 {
			t.Fatalf("start %d: status %q, logged %d times", start+1, d, told.n.Load())
		}
		c.close(victim)
	}
	c.open(victim)
	c.open(l)
	c.await("the damage to be reported", func() bool {
		d := c.group(victim).Status().Damaged
		return strings.Contains(d, "does not vote") && strings.Contains(d, "move /data away")
	})
	ctx, cancel := context.WithTimeout(c.ctx(), 500*time.Millisecond)
	defer cancel()
	if _, err := c.do(ctx, rsm.Command{NS: nsTest, Body: add("x")}); err == nil {
		t.Fatal("no majority of sound replicas: an error expected, found none")
	}
	c.open(other)
	c.await("the repair", func() bool { return c.group(victim).Status().Damaged == "" })
	// Now it counts: with the third one away the group goes on.
	c.close(other)
	base := number(c.must(add("x")))
	c.await("the repaired one to follow", func() bool { return c.count(victim, "x") == base })
	// The repair is remembered.
	c.close(victim)
	c.open(victim)
	if d := c.group(victim).Status().Damaged; d != "" {
		t.Fatalf("a repaired replica expected, found %q", d)
	}
	c.must(add("x"))
}

func TestWipedReplicaRejoins(t *testing.T) {
	rejoin := sys.NodeID(0)
	c := newCluster(t, 3, func(cfg *replica.Config) { cfg.Rejoin = cfg.Self == rejoin })
	for range 100 {
		c.must(add("x"))
	}
	rejoin = c.follower()
	c.close(rejoin)
	other := 6 - rejoin - c.leader()
	c.close(other)
	c.fs[rejoin] = vfs.NewCrashableMem()
	c.open(rejoin)
	c.await("the status to say who is waited for", func() bool {
		d := c.group(rejoin).Status().Damaged
		return strings.Contains(d, "does not vote") && strings.Contains(d, "waits for "+other.String())
	})
	c.open(other)
	c.await("the replica to return", func() bool {
		return c.count(rejoin, "x") == 100 && c.group(rejoin).Status().Damaged == ""
	})
	c.crash(rejoin)
	c.open(rejoin)
	c.must(add("x"))
}

// TestFirstRecordLost: a log that has nothing but its first record, which the disk loses, seems to be torn; but
// that record was there before the directory was anybody's, so the promise is lost.
func TestFirstRecordLost(t *testing.T) {
	c := newCluster(t, 3, nil)
	joined := c.join()
	c.close(joined)
	poke(t, c.fs[joined], 4096)
	c.open(joined)
	if d := c.group(joined).Status().Damaged; !strings.Contains(d, "does not vote") {
		t.Fatalf("a replica that does not vote expected, found %q", d)
	}
	c.change(ids(1, 2, 3), ids(joined))
	c.await("the replica to return", func() bool { return c.group(joined).Status().Damaged == "" })
}

// TestOldStateOfOneVoter: the first voter of a group that has grown since loses its log, or its state, and what it has
// left names itself alone. It does not lead by that: it is not opened, or asks the others where it is told that there are some.
func TestOldStateOfOneVoter(t *testing.T) {
	for _, lost := range []string{"log", "state", "both"} {
		t.Run(lost, func(t *testing.T) {
			others := false
			c := newCluster(t, 1, func(cfg *replica.Config) { cfg.Others = others })
			second, third := c.join(), c.join()
			c.change(ids(1), ids(second, third))
			c.change(ids(1, second, third), nil)
			c.must(add("x"))
			if lost == "state" {
				c.await("the log to be cut", func() bool {
					c.must(set("k", strings.Repeat("v", 60<<10)))
					return c.group(1).Status().Truncated > 0
				})
			}
			c.crash(1) // what is in the state now was flushed long ago
			c.must(add("x"))
			if lost != "state" {
				blank(t, c.fs[1])
			}
			if lost != "log" {
				if err := c.fs[1].RemoveAll("/data/state"); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := replica.Open(c.config(1), machines()); !sys.Is(err, sys.Corrupt) || !strings.Contains(err.Error(), "as seeds in place of the voters") {
				t.Fatalf("a refusal with advice expected, found %v", err)
			}
			others = true
			c.open(1)
			c.await("the first voter to return", func() bool { return c.count(1, "x") == 2 && c.group(1).Status().Damaged == "" })
			c.close(second)
			c.must(add("x"))
			c.close(1)
			c.open(1)
			c.must(add("x"))
		})
	}
}

// TestOldStateBesideVotes: what a log holds between an old state and where it was cut are votes, of which some were for what was
// never chosen: a snapshot had brought the rest.
func TestOldStateBesideVotes(t *testing.T) {
	c := newCluster(t, 3, func(cfg *replica.Config) { cfg.RetainBytes, cfg.TailBytes = 64<<10, 1 })
	c.must(add("x"))
	l := c.leader()
	old := vfs.NewMem()
	c.close(l)
	if _, err := vfs.Clone(c.fs[l], old, "/data/state", "/data/state"); err != nil {
		t.Fatal(err)
	}
	c.open(l)
	c.await("the leadership to return", func() bool {
		ctx, cancel := context.WithTimeout(c.ctx(), time.Second)
		defer cancel()
		return c.group(c.leader()).Transfer(ctx, l) == nil && c.leader() == l
	})
	c.must(add("x"))
	c.net.Isolate(l, true)
	ctx, cancel := context.WithTimeout(c.ctx(), 100*time.Millisecond)
	defer cancel()
	if _, _, err := c.group(l).Propose(ctx, rsm.Command{NS: nsTest, Body: add("never")}); err == nil {
		t.Fatal("something that is not chosen expected")
	}
	c.await("another leader", func() bool { return c.leader() != l })
	c.await("the logs to be cut", func() bool {
		c.must(set("k", strings.Repeat("v", 10<<10)))
		for id := sys.NodeID(1); id <= 3; id++ {
			if id != l && c.group(id).Status().Truncated <= c.group(l).Status().Chosen+2 {
				return false
			}
		}
		return true
	})
	c.net.Isolate(l, false)
	c.await("a snapshot", func() bool { return c.count(l, "x") == 2 && c.group(l).Status().Installs > 0 })
	for n := uint64(3); n < 6; n++ {
		c.must(add("x"))
		c.await("the log to go on", func() bool { return c.count(l, "x") == n })
	}
	c.close(l)
	if err := c.fs[l].RemoveAll("/data/state"); err != nil {
		t.Fatal(err)
	}
	if _, err := vfs.Clone(old, c.fs[l], "/data/state", "/data/state"); err != nil {
		t.Fatal(err)
	}
	var never atomic.Bool
	h, err := replica.Open(c.config(l), map[rsm.Namespace]rsm.Machine{nsTest: watched{saw: func(body []byte) {
		if string(body) == string(add("never")) {
			never.Store(true)
		}
	}}})
	if err != nil {
		t.Fatal(err)
	}
	c.setHost(l, h)
	c.await("the repair", func() bool { return c.count(l, "x") == 5 && c.group(l).Status().Damaged == "" })
	if never.Load() {
		t.Fatalf("node %v has run what was never chosen", l)
	}
}

// copyDir puts a copy of a directory in the place of what is there.
func copyDir(t *testing.T, from, to vfs.FS, dir string) {
	t.Helper()
	if err := to.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if ok, err := vfs.Clone(from, to, dir, dir); !ok || err != nil {
		t.Fatal(ok, err)
	}
}

// TestOldLogBesideAState: an older log in the log's place ends before what is applied, also where a snapshot has brought that. What it
// promises counts for nothing.
func TestOldLogBesideAState(t *testing.T) {
	for _, snapshot := range []bool{false, true} {
		t.Run(fmt.Sprintf("snapshot=%v", snapshot), func(t *testing.T) {
			c := newCluster(t, 3, func(cfg *replica.Config) { cfg.RetainBytes, cfg.TailBytes = 64<<10, 1 })
			c.must(add("x"))
			n := c.follower()
			c.close(n)
			old := vfs.NewMem()
			copyDir(t, c.fs[n], old, "/data/log")
			c.must(add("x"))
			others := without(ids(1, 2, 3), n)
			if snapshot {
				c.await("the logs to be cut", func() bool {
					c.must(set("k", strings.Repeat("v", 10<<10)))
					return c.group(others[0]).Status().Truncated > 4 && c.group(others[1]).Status().Truncated > 4
				})
			}
			c.open(n)
			c.await("the node to apply", func() bool { return c.count(n, "x") == 2 && (c.group(n).Status().Installs > 0) == snapshot })
			c.close(n) // and flush
			for _, id := range others {
				c.net.Isolate(id, true)
			}
			copyDir(t, old, c.fs[n], "/data/log")
			c.open(n)
			c.await("the node to miss its promise", func() bool { return strings.Contains(c.group(n).Status().Damaged, "has lost what it promised") })
			for _, id := range others {
				c.net.Isolate(id, false)
			}
			c.await("the node to return", func() bool { return c.group(n).Status().Damaged == "" })
			c.must(add("x"))
			c.await("the node to apply", func() bool { return c.count(n, "x") == 3 })
		})
	}
}

// mark is what a node's mark, /served, says.
func (c *cluster) mark(id sys.NodeID) string {
	f, err := c.fs[id].Open("/served")
	if err != nil {
		return ""
	}
	b, err := io.ReadAll(f)
	if err = errors.Join(err, f.Close()); err != nil {
		c.t.Fatal(err)
	}
	return string(b)
}

// watched is a register that shows what it runs.
type watched struct {
	register
	saw func(body []byte)
}

func (w watched) Apply(tx rsm.Tx, st rsm.Stamp, body []byte) ([]byte, any) {
	w.saw(body)
	return w.register.Apply(tx, st, body)
}

// blank zeroes all records of a log.
func blank(t *testing.T, fs vfs.FS) {
	t.Helper()
	names, err := fs.List("/data/log")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		f, err := fs.OpenReadWrite("/data/log/"+name, vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		st, err := f.Stat()
		if err == nil {
			_, err = f.WriteAt(make([]byte, st.Size()-4096), 4096)
		}
		if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

// TestWipedReplicaHearsOfARemoval: it waits for who may have had its promise, and no longer than that one is a member.
func TestWipedReplicaHearsOfARemoval(t *testing.T) {
	rejoin := sys.NodeID(0)
	c := newCluster(t, 3, func(cfg *replica.Config) { cfg.Rejoin = cfg.Self == rejoin })
	fourth, fifth := c.join(), c.join()
	c.change(ids(1, 2, 3), ids(fourth, fifth))
	all := ids(1, 2, 3, fourth, fifth)
	c.change(all, nil)
	gone := c.leader()%3 + 1
	rejoin = fourth
	c.close(gone)
	c.close(rejoin)
	c.must(add("x"))
	c.fs[rejoin] = vfs.NewCrashableMem()
	c.open(rejoin)
	c.await("the wiped one to wait for who is away", func() bool {
		return strings.Contains(c.group(rejoin).Status().Damaged, "waits for "+gone.String())
	})
	c.change(without(all, gone), nil)
	c.await("the wiped one to return", func() bool {
		return c.count(rejoin, "x") == 1 && c.group(rejoin).Status().Damaged == ""
	})
}

// wipe has nodes lose their disks at the same time, and return.
func (c *cluster) wipe(rejoin map[sys.NodeID]bool, victims []sys.NodeID) {
	for _, id := range victims {
		rejoin[id] = true
		c.close(id)
		c.fs[id] = vfs.NewCrashableMem()
	}
	for _, id := range victims {
		c.open(id)
	}
}

// TestTwoWipedReplicas of five return, and vote.
func TestTwoWipedReplicas(t *testing.T) {
	rejoin := map[sys.NodeID]bool{}
	c := newCluster(t, 5, func(cfg *replica.Config) { cfg.Rejoin = rejoin[cfg.Self] })
	c.must(add("x"))
	others := without(ids(1, 2, 3, 4, 5), c.leader())
	wiped, whole := others[:2], others[2:]
	c.wipe(rejoin, wiped)
	for _, id := range wiped {
		c.await("the wiped ones to return", func() bool { return c.count(id, "x") == 1 && c.group(id).Status().Damaged == "" })
	}
	for _, id := range whole {
		c.close(id)
	}
	c.must(add("x"))
}

// TestTooManyWipedReplicas say so: what only they had acknowledged may be lost.
func TestTooManyWipedReplicas(t *testing.T) {
	rejoin := map[sys.NodeID]bool{}
	c := newCluster(t, 3, func(cfg *replica.Config) { cfg.Rejoin = rejoin[cfg.Self] })
	c.must(add("x"))
	wiped := without(ids(1, 2, 3), c.follower())
	c.wipe(rejoin, wiped)
	for _, id := range wiped {
		c.await("a wiped one to say what is wrong", func() bool {
			return strings.Contains(c.group(id).Status().Damaged, "there is no majority without them")
		})
	}
}

// A replica whose directory is gone, and which nobody tells to rejoin, does not
// vote as if it were new: the mark beside its key tells, also when it is damaged.
func TestLostDirectoryIsTold(t *testing.T) {
	for name, mark := range map[string]*string{"whole": nil, "emptied": new(""), "damaged": new("koinon replica\ncluster ?\n")} {
		t.Run(name, func(t *testing.T) { lostDirectoryIsTold(t, mark) })
	}
}

func lostDirectoryIsTold(t *testing.T, mark *string) {
	c := newCluster(t, 3, func(cfg *replica.Config) { cfg.Mark = "node.key.served" })
	behind, lost := c.follower(), sys.NodeID(0)
	c.close(behind)
	c.must(add("x"))
	for id := sys.NodeID(1); id <= 3; id++ {
		if id != behind && id != c.leader() {
			lost = id
		}
	}
	leader := c.leader()
	c.close(leader)
	c.close(lost)
	if err := c.fs[lost].RemoveAll(c.config(lost).Dir); err != nil {
		t.Fatal(err)
	}
	if mark != nil {
		create(t, c.fs[lost], "node.key.served", *mark)
	}
	c.open(lost)
	c.open(behind) // these two alone do not know of x
	c.await("the lost one to say that it does not vote", func() bool {
		return strings.Contains(c.group(lost).Status().Damaged, "does not vote")
	})
	c.open(leader)
	c.await("the lost one to return", func() bool {
		return c.count(lost, "x") == 1 && c.group(lost).Status().Damaged == ""
	})
}

func TestOnlyVoterWithoutDirectoryRefusesToOpen(t *testing.T) {
	c := newCluster(t, 1, func(cfg *replica.Config) { cfg.Mark = "node.key.served" })
	c.must(add("x"))
	c.close(1)
	if err := c.fs[1].RemoveAll(c.config(1).Dir); err != nil {
		t.Fatal(err)
	}
	for _, rejoin := range []bool{false, true} { // others may have joined since, but nobody says where they are
		cfg := c.config(1)
		cfg.Rejoin = rejoin
		if _, err := replica.Open(cfg, machines()); !sys.Is(err, sys.Invalid) || !strings.Contains(err.Error(), "node.key.served") || !strings.Contains(err.Error(), "seeds") {
			t.Fatalf("a refusal that names the mark and the way back expected, found %v", err)
		}
	}
	cfg, told := c.config(1), &strings.Builder{}
	cfg.Voters, cfg.Logger = nil, slog.New(slog.NewTextHandler(told, nil))
	h, err := replica.Open(cfg, machines())
	if err != nil {
		t.Fatalf("as one that has joined: %v", err)
	}
	if st := h.Group(0).Status(); st.Role == rsm.Leader || !strings.Contains(st.Damaged, "does not vote") {
		t.Errorf("a replica that does not vote expected, found %+v", st)
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	if strings.Contains(told.String(), "new cluster") {
		t.Errorf("one that has joined begins no cluster, and is told: %s", told)
	}
}

func TestOnlyReplicaWithDamageRefusesToOpen(t *testing.T) {
	c := newCluster(t, 1, nil)
	for range 100 {
		c.must(add("x"))
	}
	c.close(1)
	poke(t, c.fs[1], 8192)
	_, err := replica.Open(c.config(1), machines())
	if !sys.Is(err, sys.Corrupt) || !strings.Contains(err.Error(), "backup") {
		t.Fatalf("sys.Corrupt with advice expected, found %v", err)
	}
}

func TestDirectoryOfAnotherIsRefused(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.must(add("x"))
	if _, err := replica.Open(c.config(1), machines()); !sys.Is(err, sys.Busy) || !strings.Contains(err.Error(), "in use") {
		t.Fatalf("a directory in use: sys.Busy expected, found %v", err)
	}
	c.close(1)
	write := func(text string) {
		t.Helper()
		f, err := c.fs[1].Create("/data/VERSION", vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(f, text); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	const head = "koinon replica\n"
	for _, tc := range []struct {
		text string
		kind sys.Kind
		want string
	}{
		{head + "format 1\ncluster \"other\"\nnode 1\n", sys.Invalid, "belongs to cluster \"other\""},
		{head + "format 1\ncluster \"test\"\nnode 2\n", sys.Invalid, "belongs to node n2"},
		{head + "format 99\ncluster \"test\"\nnode 1\n", sys.NotSupported, "run the newer koinon"},
		{"rubbish", sys.Corrupt, "is not readable"},
	} {
		write(tc.text)
		_, err := replica.Open(c.config(1), machines())
		if !sys.Is(err, tc.kind) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%q: %v with %q expected, found %v", tc.text, tc.kind, tc.want, err)
		}
	}
	write(head + "format 1\ncluster \"test\"\nnode 1\n")
	c.open(1)
	if got := number(c.must(add("x"))); got != 2 {
		t.Fatalf("counter: 2 expected, found %d", got)
	}
}

// TestNewerLogIsRefusedFirst: a log of a newer format is refused before
// anything else in the directory is touched.
func TestNewerLogIsRefusedFirst(t *testing.T) {
	c := newCluster(t, 1, nil)
	c.must(add("x"))
	c.close(1)
	fs := c.fs[1]
	forge := func(version byte) {
		t.Helper()
		names, err := fs.List("/data/log")
		if err != nil || len(names) == 0 {
			t.Fatal(names, err)
		}
		f, err := fs.OpenReadWrite("/data/log/"+slices.Min(names), vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		head := make([]byte, 64)
		if _, err := f.ReadAt(head, 0); err != nil {
			t.Fatal(err)
		}
		head[12] = version // docs/formats/log.md
		binary.LittleEndian.PutUint32(head[8:], crc32.Checksum(head[12:], crc32.MakeTable(crc32.Castagnoli)))
		if _, err := f.WriteAt(head, 0); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	state := func() string {
		t.Helper()
		names, err := fs.List("/data/state")
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(names)
		return strings.Join(names, " ")
	}
	before := state()
	forge(2)
	_, err := replica.Open(c.config(1), machines())
	if !sys.Is(err, sys.NotSupported) || !strings.Contains(err.Error(), "run the newer koinon") {
		t.Fatalf("sys.NotSupported with advice expected, found %v", err)
	}
	if after := state(); after != before {
		t.Errorf("the state was opened: before %s, after %s", before, after)
	}
	forge(1)
	c.open(1)
	c.must(add("x"))
}

func TestFullDiskRefusesAndGoesOn(t *testing.T) {
	c := newCluster(t, 3, func(cfg *replica.Config) { cfg.ReserveBytes = 1 << 20 })
	c.must(add("x"))
	setFree := func(free uint64) {
		for _, fs := range c.fs {
			fs.(*vfs.MemFS).TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: free, TotalBytes: 1 << 30, UsedBytes: 1<<30 - free})
		}
	}
	setFree(1000)
	c.await("NoSpace", func() bool { return c.group(c.leader()).Status().NoSpace })
	if _, err := c.do(c.ctx(), rsm.Command{NS: nsTest, Body: add("x")}); !sys.Is(err, sys.NoSpace) {
		t.Fatalf("sys.NoSpace expected, found %v", err)
	}
	err := c.group(c.leader()).Read(c.ctx(), nsTest, func(rsm.Reader) error { return nil })
	if err != nil {
		t.Fatalf("a read on a full disk: %v", err)
	}
	setFree(1 << 29)
	c.await("space", func() bool { return !c.group(c.leader()).Status().NoSpace })
	if got := number(c.must(add("x"))); got != 2 {
		t.Fatalf("counter: 2 expected, found %d", got)
	}
}

func TestLogIsCutBehindTheFlushedState(t *testing.T) {
	c := newCluster(t, 1, nil)
	value := strings.Repeat("v", 32<<10)
	for i := range 200 {
		c.must(set(fmt.Sprint("key", i%10), value))
	}
	c.await("the log to be cut", func() bool { return c.group(1).Status().Truncated > 50 })
	// The files go in the background.
	c.await("at most 16 segments of 256 KiB", func() bool {
		names, err := c.fs[1].List("/data/log")
		return err == nil && len(names) <= 16
	})
	c.crash(1)
	c.open(1)
	if got := number(c.must(add("x"))); got != 1 || c.local(1, "key9") != value {
		t.Fatal("the state after a crash is not whole")
	}
}
