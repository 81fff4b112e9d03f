package hosts

import (
	"context"
	"fmt"
	"hash/crc32"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/koinon/koinon/internal/replica"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sim/world"
	"github.com/koinon/koinon/internal/sys"
)

// node is a machine: its disk, its clock, and the process on it.
type node struct {
	c      *cluster
	id     sys.NodeID
	disk   *disk
	joins  bool  // it was no voter in the beginning
	wiped  bool  // its disk was replaced, so that it rejoins
	spoilt bool  // it may lack what it had promised
	life   *life // nil when no process runs

	clockBase time.Duration // the reading at clockFrom
	clockFrom world.Instant
	clockRate float64
}

// life is one run of a node's process.
type life struct {
	n       *node
	proc    *world.Process
	host    *replica.Host // once it is open
	err     error         // of Open
	over    bool          // Open has returned
	closing bool
	closed  bool
	gone    chan struct{} // closed when the process takes nothing more
	handler replica.Handler
	missed  []func() // what came during a pause
}

func newNode(c *cluster, joins bool) *node {
	n := &node{c: c, id: sys.NodeID(len(c.nodes) + 1), joins: joins, clockRate: 1}
	n.clockBase = time.Duration(c.Pick(world.Second, 1000*world.Second))
	n.skewClock()
	n.newDisk()
	c.nodes = append(c.nodes, n)
	return n
}

func (n *node) newDisk() {
	n.disk = &disk{MemFS: vfs.NewCrashableMem(), c: n.c, files: map[string]*content{}}
}

// Boot implements env.Clock. Whoever asked may be held up before it can use
// the answer.
func (n *node) Boot() time.Duration {
	now, c := n.clock(), n.c
	if n.life != nil && n.life.proc.Running() && !c.healed && c.Chance(c.shape.holdUp) {
		c.stats.HeldUp++
		held := c.Pick(0, world.OneOf(c.World, 100*world.Microsecond, 5*world.Millisecond, 900*world.Millisecond))
		if c.Chance(0.3) {
			n.life.pause(held) // all of it, just here
		}
		n.life.proc.Sleep(held)
	}
	return now
}

// clock reads the clock.
func (n *node) clock() time.Duration {
	return n.clockBase + time.Duration(float64(n.c.Now-n.clockFrom)*n.clockRate)
}

// Wall implements env.Clock. Nobody sees to it that nodes agree on the time of day.
func (n *node) Wall() time.Time {
	return time.Unix(1_700_000_000, int64(n.c.Now)+int64(n.clockRate*1e6)*1e3)
}

// skewClock lets the clock go on at another rate, as wrong as is allowed.
func (n *node) skewClock() {
	n.clockBase, n.clockFrom, n.clockRate = n.clock(), n.c.Now, 1
	if d := n.c.shape.driftPPM; d > 0 {
		n.clockRate = 1 + float64(n.c.Rand.IntN(2*d+1)-d)/1e6
	}
}

// start starts the process.
func (n *node) start() {
	c := n.c
	if n.life != nil {
		return
	}
	if c.Chance(0.2) { // the machine was started anew
		n.clockBase, n.clockFrom = time.Duration(c.Pick(world.Second, 1000*world.Second)), c.Now
	}
	l := &life{n: n, gone: make(chan struct{})}
	l.proc = c.NewProcess(uint64(n.id), func() world.Instant {
		if !c.healed && c.Chance(0.005) {
			return c.Pick(world.Microsecond, 50*world.Millisecond)
		}
		return c.Pick(100, 20*world.Microsecond)
	})
	n.life = l
	n.disk = n.disk.next(l.proc)
	c.Mark('+', uint64(n.id))
	cfg := n.config()
	cfg.Sched, cfg.Transport = l.proc, l
	l.proc.Go(func() {
		l.host, l.err = replica.Open(cfg, map[rsm.Namespace]rsm.Machine{nsLedger: &ledger{l}})
		l.over = true
		n.disk.open = true
		if l.err != nil {
			c.Trace("node %d does not open: %v", n.id, l.err)
		}
	})
	c.watch(l)
}

func (n *node) config() replica.Config {
	s := &n.c.shape
	cfg := replica.Config{
		Dir: dir, FS: n.disk, Clock: n, Cluster: "sim", Self: n.id, Seed: n.c.Rand.Uint64() | 1,
		Rejoin: n.wiped, Others: true, Mark: "/served",
		SegmentBytes: s.segmentBytes, RetainBytes: s.retainBytes, TailBytes: s.tailBytes, ReserveBytes: 1 << 20,
		BlockCacheBytes: 256 << 10, MemTableBytes: 8 << 20, DigestEvery: 8,
		Pipeline: s.pipeline, BatchCommands: s.batchCommands,
		Tick: 10 * time.Millisecond, Heartbeat: time.Duration(s.heartbeat),
		ElectionTimeout: time.Duration(s.electionTimeout), Lease: time.Duration(s.electionTimeout * 4 / 5),
		SessionTTL: time.Duration(s.sessionTTL),
	}
	for id := sys.NodeID(1); id <= nodesMax; id++ {
		cfg.Peers = append(cfg.Peers, replica.Peer{ID: id})
		if int(id) <= s.voters && !n.joins {
			cfg.Voters = append(cfg.Voters, replica.Peer{ID: id})
		}
	}
	if n.c.Tracing() {
		cfg.Logger = slog.New(traceLog{n})
	}
	cfg.Sabotage(n.c.bugs)
	return cfg
}

// traceLog writes what a host logs into the trace.
type traceLog struct{ n *node }

func (t traceLog) Enabled(context.Context, slog.Level) bool { return true }
func (t traceLog) WithAttrs([]slog.Attr) slog.Handler       { return t }
func (t traceLog) WithGroup(string) slog.Handler            { return t }

// Handle implements slog.Handler.
func (t traceLog) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	r.Attrs(func(a slog.Attr) bool { b.WriteString(" " + a.String()); return true })
	t.n.c.Trace("node %d: %s%s", t.n.id, r.Message, b.String())
	return nil
}

// pause freezes the process.
func (l *life) pause(d world.Instant) {
	c := l.n.c
	if until := c.Now + d; until > l.proc.PausedUntil {
		c.stats.Pauses++
		c.Mark('p', uint64(l.n.id), uint64(d))
		l.proc.PausedUntil = until
	}
}

// group is the node's replica, nil unless a process runs that has opened it.
func (n *node) group() *replica.Group {
	if n.life == nil || n.life.host == nil || n.life.closing {
		return nil
	}
	return n.life.host.Group(0)
}

// crash ends the process at once, and the machine: of what was not synced any
// part may be there.
func (n *node) crash() {
	l := n.life
	if l == nil {
		return
	}
	n.c.stats.Crashes++
	n.c.Mark('-', uint64(n.id))
	l.count()
	n.life = nil
	l.end()
	n.disk = n.disk.crash()
	if c := n.c; !c.healed && (n.disk.oldState == nil || !n.first() && c.Chance(0.1)) {
		n.disk.keepState()
	}
	l.clear()
}

// count adds up what the host has counted.
func (l *life) count() {
	if l.host == nil || l.closing {
		return
	}
	s, t := l.host.Group(0).Status(), &l.n.c.stats
	t.Snapshots += int(s.Installs)
	t.Repeats += int(s.Deduped)
	t.IndexReads += int(s.ReadIndex)
	t.Elections += int(s.Elections)
	if s.Truncated > 0 {
		t.Truncations++
	}
}

// clear lets the remains of a process come to their end, unseen.
func (l *life) clear() {
	l.proc.Finish(func() bool { return l.over })
	if l.host != nil {
		l.close()
		l.proc.Finish(func() bool { return l.closed })
	}
	l.proc.Finish(l.proc.Idle)
	l.proc.End()
}

// close begins to close the host.
func (l *life) close() {
	if l.closing {
		return
	}
	l.closing = true
	l.proc.Go(func() {
		if err := l.host.Close(); err != nil && l.host.Err() == nil && l.n.life == l {
			l.n.c.Fail("node %d: close: %v", l.n.id, err)
		}
		l.closed = true
	})
}

// stop ends the process as an administrator does, and starts it again.
func (n *node) stop() {
	l := n.life
	if l == nil || l.host == nil || l.closing {
		return
	}
	n.c.stats.Stops++
	l.count()
	l.close()
}

// watch looks after a process: one that has stopped by itself, or could not be
// opened, is started again after a while.
func (c *cluster) watch(l *life) {
	if l.n.life != l {
		return
	}
	failed := l.over && l.host == nil
	if l.host != nil {
		select {
		case <-l.host.Failed():
			failed = true
		default:
		}
	}
	switch {
	case failed:
		c.stats.Failures++
		l.n.crash()
	case l.closed && l.proc.Idle():
		l.n.life = nil
		l.proc.End()
	default:
		l.n.noteRepair()
		c.After(5*world.Millisecond, func() { c.watch(l) })
		return
	}
	c.restartAfter(l.n, c.Pick(world.Millisecond, 300*world.Millisecond))
}

// end has the process take nothing more.
func (l *life) end() {
	l.handler = nil
	select {
	case <-l.gone:
	default:
		close(l.gone)
	}
}

// Handle implements replica.Transport.
func (l *life) Handle(h replica.Handler) {
	if l.handler = h; h == nil {
		l.end()
	}
}

// SetPeers implements replica.Transport. All nodes can reach each other.
func (l *life) SetPeers([]replica.Peer) {}

// Send implements replica.Transport.
func (l *life) Send(to sys.NodeID, lane replica.Lane, frame []byte) {
	c, from := l.n.c, l.n.id
	if l.n.life != l {
		return
	}
	c.Mark('s', uint64(from), uint64(to), uint64(lane), uint64(len(frame)), uint64(crc32.ChecksumIEEE(frame)))
	b := slices.Clone(frame)
	c.net.send(from, to, func(at *life) { at.handler.Message(from, slices.Clone(b)) })
}

// Call implements replica.Transport. A request that is said to have been lost
// may have been heard.
func (l *life) Call(_ context.Context, to sys.NodeID, req []byte) ([]byte, error) {
	const op = sys.Op("hosts.Call")
	c, from := l.n.c, l.n.id
	if l.n.life != l {
		return nil, sys.E(op, sys.Unavailable, "the process is gone")
	}
	c.Mark('q', uint64(from), uint64(to), uint64(len(req)), uint64(crc32.ChecksumIEEE(req)))
	done := make(chan struct{})
	var answer []byte
	err := sys.E(op, sys.Unavailable, "no answer")
	answered := false
	b := slices.Clone(req)
	c.net.send(from, to, func(at *life) {
		h := at.handler
		at.proc.Go(func() {
			reply, failure := h.Call(context.Background(), from, b)
			if at.n.life != at {
				return
			}
			c.net.send(to, from, func(*life) {
				if !answered {
					answered, answer, err = true, reply, failure
					close(done)
				}
			})
		})
	})
	timer := l.proc.NewTimer(time.Duration(c.Pick(300*world.Millisecond, world.Second)))
	l.proc.Wait(timer, done, l.gone, nil)
	answered = true
	return answer, err
}

// deliver does something now, or when the pause of the process is over.
func (l *life) deliver(do func()) {
	c := l.n.c
	if c.Now >= l.proc.PausedUntil {
		do()
		return
	}
	l.missed = append(l.missed, do)
	if len(l.missed) > 1 {
		return
	}
	var wake func()
	wake = func() {
		if c.Now < l.proc.PausedUntil {
			c.After(l.proc.PausedUntil-c.Now, wake)
			return
		}
		missed := l.missed
		l.missed = nil
		for _, do := range missed {
			do()
		}
	}
	c.After(l.proc.PausedUntil-c.Now, wake)
}

// appendNode says where a node is.
func appendNode(b []byte, n *node) []byte {
	b = fmt.Appendf(b, "\n  node %d spoilt=%v wiped=%v", n.id, n.spoilt, n.wiped)
	if g := n.group(); g != nil {
		s := g.Status()
		b = fmt.Appendf(b, " %v leader=%v chosen=%d applied=%d truncated=%d voters=%v learners=%v next=%v damaged=%q",
			s.Role, s.Leader, s.Chosen, s.Applied, s.Truncated, s.Voters, s.Learners, s.NextVoters, s.Damaged)
	} else if n.life != nil {
		b = fmt.Appendf(b, " not open: %v", n.life.err)
	}
	return b
}
