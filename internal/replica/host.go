package replica

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/errors/oserror"
	"github.com/cockroachdb/pebble/v2"
	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/replica/wal"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
)

// Host is one node's share of all groups. Its methods may be called
// concurrently.
type Host struct {
	cfg      Config
	machines map[rsm.Namespace]rsm.Machine
	lock     io.Closer
	db       *pebble.DB
	log      *wal.Log
	groups   []*Group // in the order of Config.Groups
	rand     *rand.Rand

	drv       driver
	notify    chan struct{} // leadership changed
	upkeep    chan struct{} // wakes maintain
	flushed   atomic.Bool   // Pebble has flushed, which maintain looks into
	wantFlush atomic.Bool
	noSpace   atomic.Bool
	noReserve atomic.Bool  // not even the reserve is left
	fullSince atomic.Int64 // Boot time in ns at which noSpace became true
	toldFull  atomic.Int64 // Boot time in ns of the last log line about it
	// stateFullAt is when the state last found no space, env.Clock.Boot; 0: never.
	stateFullAt atomic.Int64
	snapshots   chan struct{} // tokens for snapshots being sent

	marked    *identity   // what the mark said at the start; nil: there was none of this node
	wantMark  atomic.Bool // it is to be written
	markFails bool        // it could not be; of writeMark's callers

	isNew   bool                         // this start has made the directory
	only    atomic.Bool                  // there is no other voter to be repaired from
	peersMu sync.Mutex                   // held while peers change
	peers   atomic.Pointer[[]sys.NodeID] // without this node, ascending; never nil

	stop     chan struct{} // closed when the host stops, by itself or by Close
	stopOnce sync.Once
	failed   chan struct{} // closed when it stopped by itself
	disownMu sync.Mutex
	errMu    sync.Mutex
	err      error
	ctx      context.Context // ends with stop
	cancel   context.CancelFunc

	// Who uses the files: the host's own goroutines, and readers.
	useMu   sync.Mutex
	useN    int
	useEnd  bool
	useIdle chan struct{}

	counters
}

// Open opens the host's directory, or makes it, recovers what was agreed, and
// takes part in the groups. machines hold the namespaces above 0; all groups
// use them.
//
// Errors say what to do: another process uses the directory (sys.Busy), it is
// another node's or cluster's (sys.Invalid), it was written by a newer program
// (sys.NotSupported), the disk is full (sys.NoSpace), or it cannot be repaired
// in place (sys.Corrupt). A damaged log does not fail Open when the group has
// other replicas: the replica then does not vote until it is repaired, see
// Status.Damaged.
func Open(cfg Config, machines map[rsm.Namespace]rsm.Machine) (*Host, error) {
	cfg = cfg.withDefaults()
	if err := cfg.check(); err != nil {
		return nil, err
	}
	for ns := range machines {
		if ns == rsm.NSSession || ns == nsLocal {
			return nil, sys.E(sys.Op("replica.Open"), sys.Invalid, fmt.Sprintf("namespace %d is taken", ns))
		}
	}
	h := &Host{
		cfg: cfg, machines: machines,
		notify: make(chan struct{}, 1), upkeep: make(chan struct{}, 1),
		snapshots: make(chan struct{}, snapshotsAtOnce),
		stop:      make(chan struct{}), failed: make(chan struct{}), useIdle: make(chan struct{}),
	}
	for range snapshotsAtOnce {
		h.snapshots <- struct{}{}
	}
	h.ctx, h.cancel = context.WithCancel(context.Background())
	seed := cfg.Seed
	if seed == 0 {
		seed = rand.Uint64()
	}
	h.rand = rand.New(rand.NewPCG(seed, uint64(cfg.Self)))
	h.drv.wake = make(chan struct{}, 1)
	h.only.Store(len(cfg.Voters) == 1)
	h.peers.Store(&[]sys.NodeID{})
	if err := h.open(); err != nil {
		h.cancel()
		return nil, errors.Join(err, h.closeFiles())
	}
	h.start()
	return h, nil
}

// open brings the files into use and recovers the groups.
func (h *Host) open() error {
	cfg := &h.cfg
	var err error
	if h.lock, err = lockDir(cfg.FS, cfg.Dir); err != nil {
		return err
	}
	exists, err := checkIdentity(cfg)
	if err == nil {
		err = h.checkBroken()
	}
	if err == nil && exists {
		var aside bool
		if aside, err = h.setAside(); aside {
			exists, cfg.Rejoin = false, true
		}
	}
	if err == nil {
		err = h.checkMark(exists)
	}
	if err != nil {
		return err
	}
	h.isNew = !exists
	// Before the state is opened, which may write to it.
	if err := wal.CheckFormat(cfg.FS, cfg.FS.PathJoin(cfg.Dir, "log")); err != nil {
		return sys.E(sys.Op("replica.Open"), sys.Subject(cfg.Dir), err)
	}
	if h.db, err = h.openState(); err != nil {
		return err
	}
	if err := h.recover(exists); err != nil {
		return err
	}
	if h.marked == nil && cfg.Mark != "" {
		h.writeMark()
	}
	return h.clearSnapshots()
}

// start sets the goroutines going. Only then do others hear of this host.
func (h *Host) start() {
	h.SetPeers(h.cfg.Peers)
	h.spawn(h.drive)
	for _, g := range h.groups {
		h.spawn(g.applier.run)
	}
	h.spawn(h.maintain)
	h.spawn(h.notifyWatchers)
	h.cfg.Transport.Handle(h)
	for _, g := range h.groups {
		if g.d.node == nil {
			h.spawn(g.regainPromise)
		}
	}
	h.wakeDriver()
}

// spawn runs fn in a goroutine that Close waits for, unless the host is closing.
func (h *Host) spawn(fn func()) {
	if !h.use() {
		return
	}
	h.cfg.Sched.Go(func() {
		defer h.unuse()
		defer h.noteBroken()
		fn()
	})
}

// New reports whether this start has made the directory.
func (h *Host) New() bool { return h.isNew }

// Group returns the replica of a group, nil when this host does not serve it.
func (h *Host) Group(id sys.GroupID) *Group {
	for _, g := range h.groups {
		if g.id == id {
			return g
		}
	}
	return nil
}

// Failed is closed when the host has stopped by itself, because its log or
// state failed: nothing is acknowledged after that. Err says why; Close it and
// start the process anew.
func (h *Host) Failed() <-chan struct{} { return h.failed }

// Err returns why the host stopped by itself, nil while it runs.
func (h *Host) Err() error {
	h.errMu.Lock()
	defer h.errMu.Unlock()
	return h.err
}

// fail stops the host because of err.
func (h *Host) fail(err error) {
	h.errMu.Lock()
	first := h.err == nil
	if first {
		h.err = err
	}
	h.errMu.Unlock()
	if !first {
		return
	}
	select {
	case <-h.stop: // Close came first, and what it takes away may fail
		return
	default:
	}
	h.cfg.Logger.Error("the replica stops", "dir", h.cfg.Dir, "err", err)
	close(h.failed)
	h.halt()
}

// halt stops all goroutines and answers everybody who waits.
func (h *Host) halt() {
	h.stopOnce.Do(func() {
		close(h.stop)
		h.cancel()
		for _, g := range h.groups {
			err := h.stopped("replica.Group")
			g.view.Store(&leaderView{})
			g.failProposals(0, err)
			g.failAllReaders(err)
		}
	})
}

// stopped is the error of everything after the host stopped.
func (h *Host) stopped(op sys.Op) error {
	if err := h.Err(); err != nil {
		return sys.E(op, sys.Unavailable, err)
	}
	return sys.E(op, sys.Unavailable, "the replica is closed")
}

// Close stops taking part and closes the files. What was acknowledged is
// durable before; the state is flushed so that the next Open is quick. Callers
// that still wait are answered with sys.Unavailable.
//
// A disk that is full or stands still can hold the state up without end. Close
// gives up then: it returns sys.Unavailable after some seconds, and the
// directory stays locked until the process ends. Nothing is lost by that.
func (h *Host) Close() error {
	h.cfg.Transport.Handle(nil)
	h.halt()
	shut := newAnswer[error]()
	h.cfg.Sched.Go(func() { shut.give(h.shut()) })
	timer := h.cfg.Sched.NewTimer(closeMax)
	defer timer.Stop()
	if h.cfg.Sched.Wait(timer, shut.done, nil, nil) != env.Fired {
		return shut.v
	}
	h.cfg.Logger.Error("the replica cannot be closed: its disk is full or stands still; end the process", "dir", h.cfg.Dir)
	return sys.E(sys.Op("replica.Close"), sys.Unavailable, sys.Subject(h.cfg.Dir),
		fmt.Sprintf("the state was not closed within %v: the disk is full or stands still", closeMax))
}

const (
	// closeMax bounds Close.
	closeMax = 5 * time.Second
	// flushMax bounds the flush of Close, which only saves work later.
	flushMax = 3 * time.Second
)

// shut waits for the goroutines and closes the files.
func (h *Host) shut() error {
	h.awaitUsers()
	// The driver may have registered readers while halt ran.
	for _, g := range h.groups {
		for _, ws := range g.d.reads {
			failReaders(ws, h.stopped("replica.Read"))
		}
		g.failAllReaders(h.stopped("replica.Read"))
	}
	var err error
	for _, g := range h.groups {
		err = errors.Join(err, g.incoming.close(h.Err() == nil), g.outSnap.close())
	}
	if h.Err() == nil && h.db != nil {
		err = h.flushState()
	}
	return errors.Join(err, h.closeFiles())
}

// flushState makes the state durable, if that works soon. What it lacks is in
// the log.
func (h *Host) flushState() error {
	flushed, err := h.db.AsyncFlush()
	if err != nil {
		return err
	}
	timer := time.NewTimer(flushMax)
	defer timer.Stop()
	// Pebble's goroutines are not the Sched's.
	select {
	case <-flushed:
	case <-timer.C:
		h.cfg.Logger.Error("the state could not be flushed; the next start replays the log", "dir", h.cfg.Dir, "waited", flushMax)
	}
	return nil
}

func (h *Host) closeFiles() error {
	var errs []error
	if h.log != nil {
		errs = append(errs, h.log.Close()) // it goes on to count for Status
	}
	if h.db != nil {
		errs = append(errs, h.db.Close())
		h.db = nil
	}
	if h.lock != nil {
		errs = append(errs, h.lock.Close())
		h.lock = nil
	}
	return errors.Join(errs...)
}

// use keeps the state open until unuse; it is false when the host is closing.
func (h *Host) use() bool {
	h.useMu.Lock()
	defer h.useMu.Unlock()
	if h.useEnd {
		return false
	}
	h.useN++
	return true
}

func (h *Host) unuse() {
	h.useMu.Lock()
	defer h.useMu.Unlock()
	h.useN--
	if h.useEnd && h.useN == 0 {
		close(h.useIdle)
	}
}

// awaitUsers waits until nobody uses the state and lets nobody begin.
func (h *Host) awaitUsers() {
	h.useMu.Lock()
	first := !h.useEnd
	h.useEnd = true
	if first && h.useN == 0 {
		close(h.useIdle)
	}
	h.useMu.Unlock()
	h.cfg.Sched.Wait(nil, h.useIdle, nil, nil)
}

// notifyWatchers tells of changes of leadership.
func (h *Host) notifyWatchers() {
	for h.cfg.Sched.Wait(nil, h.notify, h.stop, nil) == env.GotA {
		for _, g := range h.groups {
			g.callWatchers()
		}
	}
}

var _ Handler = (*Host)(nil)

// Message implements Handler.
func (h *Host) Message(from sys.NodeID, frame []byte) {
	err := decodeFrame(frame, func(m groupMessage) {
		if !h.drv.inbox.put(from, m) {
			h.droppedFrames.Add(1)
		}
	})
	if err != nil {
		h.cfg.Logger.Warn("a message cannot be decoded", "from", from, "err", err)
	}
	h.wakeDriver()
}

func isNotExist(err error) bool { return oserror.IsNotExist(err) }
