package executor

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/koinon/koinon/internal/daemon"
	"github.com/koinon/koinon/internal/sys"
)

// serve answers calls until ctx ends, a call asks for the end, or nothing is left to do.
func (s *supervisor) serve(ctx context.Context) error {
	l, err := listen(s.dir)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conns := newConnections()
	srv := &http.Server{Handler: s.handler(), ConnState: conns.note, BaseContext: func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: closeWithin, ErrorLog: slog.NewLogLogger(slog.Default().Handler(), slog.LevelWarn)}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	var ready unix.Stat_t // an os.File would close it when it is collected
	if err := unix.Fstat(daemon.ReadyFD, &ready); err == nil && ready.Mode&unix.S_IFMT == unix.S_IFIFO {
		if err := daemon.TellReady(daemon.ReadyFD, "ready"); err != nil {
			slog.Error("say that the supervisor is ready", "error", err)
		}
	}
	err = s.untilDone(ctx, conns)
	cancel() // calls that wait end
	down, stop := context.WithTimeout(context.Background(), closeWithin)
	defer stop()
	return errors.Join(err, srv.Shutdown(down), ignore(<-served, http.ErrServerClosed))
}

func ignore(err, what error) error {
	if errors.Is(err, what) {
		return nil
	}
	return err
}

// untilDone returns when the supervisor should end, with the error that makes it.
func (s *supervisor) untilDone(ctx context.Context, conns *connections) error {
	idle := time.NewTimer(idleAfter)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.shutdownAsks:
			return s.endAll()
		case err := <-s.failed:
			return err
		case <-idle.C:
			s.mu.Lock()
			runs := slices.ContainsFunc(s.all(), func(p *process) bool { return p.status == nil })
			s.closing = !runs && conns.idleFor(idleAfter)
			closing := s.closing
			s.mu.Unlock()
			if closing {
				return nil
			}
			idle.Reset(idleAfter / 4)
		}
	}
}

// listen makes the socket. Only the user of the daemon may enter the directory.
func listen(dir string) (net.Listener, error) {
	path := filepath.Join(dir, socketName)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), socketName)})
	if err = errors.Join(err, d.Close()); err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // by then it may be the next one's
	return l, os.Chmod(path, 0o600)
}

// connections knows since when there are none.
type connections struct {
	mu   sync.Mutex
	open map[net.Conn]bool
	last time.Time
}

func newConnections() *connections {
	return &connections{open: map[net.Conn]bool{}, last: time.Now()}
}

func (c *connections) note(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch state {
	case http.StateNew:
		c.open[conn] = true
	case http.StateClosed, http.StateHijacked:
		delete(c.open, conn)
		c.last = time.Now()
	}
}

func (c *connections) idleFor(d time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.open) == 0 && time.Since(c.last) >= d
}

func (s *supervisor) handler() http.Handler {
	mux := http.NewServeMux()
	handle(mux, callStart, s.start)
	handle(mux, callSignal, s.signal)
	handle(mux, callStop, s.stop)
	handle(mux, callStdin, s.openStdin)
	handle(mux, callCloseStdin, s.closeStdin)
	handle(mux, callRenew, s.renew)
	handle(mux, callFence, s.setFence)
	handle(mux, callSweep, s.sweep)
	handle(mux, callForget, s.forget)
	handle(mux, callList, s.list)
	handle(mux, callEvents, s.tellEvents)
	handle(mux, callOutput, s.output)
	handle(mux, callAck, s.ack)
	handle(mux, callEnforced, s.tellEnforced)
	handle(mux, callShutdown, s.shutdown)
	return mux
}

// handle answers a call by a function.
func handle[Request, Reply any](mux *http.ServeMux, name string, do func(context.Context, Request) (Reply, error)) {
	mux.HandleFunc(wirePrefix+name, func(w http.ResponseWriter, r *http.Request) {
		var req Request
		var reply Reply
		err := json.NewDecoder(r.Body).Decode(&req)
		if err != nil {
			err = sys.E(sys.Op("executor."+name), sys.Invalid, err)
		} else {
			reply, err = do(r.Context(), req)
		}
		w.Header().Set("Content-Type", "application/json")
		if err == nil {
			err = json.NewEncoder(w).Encode(reply)
		} else {
			w.WriteHeader(http.StatusUnprocessableEntity)
			err = json.NewEncoder(w).Encode(newFailure(err))
		}
		if err != nil {
			slog.Debug("an answer did not arrive", "call", name, "error", err) // its caller has gone
		}
	})
}

// find returns a process that was started.
func (s *supervisor) find(ctx context.Context, op sys.Op, id ID) (*process, error) {
	s.mu.Lock()
	p := s.procs[id]
	s.mu.Unlock()
	if p != nil {
		select {
		case <-p.started:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if p.startErr == nil {
			return p, nil
		}
	}
	return nil, sys.E(op, sys.NotExist, sys.Subject(id.String()), "no such process")
}

// all returns the processes in the order of their IDs. mu is held.
func (s *supervisor) all() []*process {
	ps := make([]*process, 0, len(s.procs))
	for _, p := range s.procs {
		ps = append(ps, p)
	}
	slices.SortFunc(ps, func(a, b *process) int {
		return cmp.Or(cmp.Compare(a.run, b.run), cmp.Compare(a.id.Job, b.id.Job), cmp.Compare(a.id.Rank, b.id.Rank))
	})
	return ps
}

func (s *supervisor) signal(ctx context.Context, req signalRequest) (struct{}, error) {
	const op = sys.Op("executor.Signal")
	if req.Signal <= 0 || req.Signal > 64 {
		return struct{}{}, sys.E(op, sys.Invalid, fmt.Sprintf("no signal has the number %d", int(req.Signal)))
	}
	p, err := s.find(ctx, op, req.ID)
	if err != nil {
		return struct{}{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.signalGroup(p, req.Signal) {
		return struct{}{}, sys.E(op, sys.NotExist, sys.Subject(req.ID.String()), "the process has ended")
	}
	p.sent[req.Signal] = true
	return struct{}{}, nil
}

func (s *supervisor) stop(ctx context.Context, req stopRequest) (struct{}, error) {
	const op = sys.Op("executor.Stop")
	s.mu.Lock()
	p := s.procs[req.ID]
	s.mu.Unlock()
	if p == nil {
		return struct{}{}, sys.E(op, sys.NotExist, sys.Subject(req.ID.String()), "no such process")
	}
	s.end(p, Stopped, req.Grace)
	return struct{}{}, nil
}

// openStdin tells where the input of a process can be opened.
func (s *supervisor) openStdin(ctx context.Context, req idRequest) (stdinReply, error) {
	const op = sys.Op("executor.Stdin")
	p, err := s.find(ctx, op, req.ID)
	if err != nil {
		return stdinReply{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.stdin == nil {
		return stdinReply{}, sys.E(op, sys.NotExist, sys.Subject(req.ID.String()), "the process has ended, its input was closed, or it was started without one")
	}
	var st unix.Stat_t
	fd := int(p.stdin.Fd())
	if err := unix.Fstat(fd, &st); err != nil {
		return stdinReply{}, sys.E(op, err)
	}
	return stdinReply{Path: fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fd), Inode: st.Ino}, nil
}

func (s *supervisor) closeStdin(ctx context.Context, req idRequest) (struct{}, error) {
	p, err := s.find(ctx, "executor.Stdin", req.ID)
	if sys.Is(err, sys.NotExist) {
		return struct{}{}, nil
	} else if err != nil {
		return struct{}{}, err
	}
	s.mu.Lock()
	f := p.stdin
	p.stdin = nil
	s.mu.Unlock()
	if f == nil {
		return struct{}{}, nil
	}
	return struct{}{}, f.Close()
}

func (s *supervisor) tellEnforced(context.Context, struct{}) (enforcedReply, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	fence := s.fence
	return enforcedReply{Enforced: s.groups.enforced, Fence: &fence, Instance: s.instance}, nil
}

func (s *supervisor) setFence(_ context.Context, req epochRequest) (struct{}, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if req.Epoch <= s.fence {
		return struct{}{}, nil
	}
	if _, err := s.records.append(record{Kind: recordFence, Epoch: req.Epoch}); err != nil {
		s.fail(err)
		return struct{}{}, err
	}
	s.fence = req.Epoch
	return struct{}{}, nil
}

func (s *supervisor) sweep(ctx context.Context, req epochRequest) (struct{}, error) {
	return struct{}{}, s.fenceOff(ctx, func(p *process) bool { return p.id.Epoch < req.Epoch })
}

func (s *supervisor) forget(_ context.Context, req idRequest) (struct{}, error) {
	const op = sys.Op("executor.Forget")
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.procs[req.ID]
	if p == nil {
		return struct{}{}, nil
	}
	if p.status == nil {
		return struct{}{}, sys.E(op, sys.Busy, sys.Subject(req.ID.String()), "the process runs: stop it first")
	}
	return struct{}{}, s.remove(p)
}

func (s *supervisor) shutdown(context.Context, struct{}) (int, error) {
	s.mu.Lock()
	s.closing = true
	s.mu.Unlock()
	select {
	case s.shutdownAsks <- struct{}{}:
	default:
	}
	return os.Getpid(), nil
}

// tellEvents waits for events after one that the caller knows.
func (s *supervisor) tellEvents(ctx context.Context, req eventsRequest) ([]Event, error) {
	for {
		var events []Event
		s.mu.Lock()
		changed := s.changed
		from := sort.Search(len(s.events), func(i int) bool { return s.events[i].seq > req.After })
		for _, e := range s.events[from:] {
			if len(events) == eventsMax {
				break
			}
			one := Event{Seq: e.seq, ID: e.p.id, PID: e.p.proc.PID, Started: e.p.begun}
			if e.seq == e.p.end {
				one.Status = e.p.status
			}
			events = append(events, one)
		}
		s.mu.Unlock()
		if len(events) > 0 {
			return events, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (s *supervisor) output(ctx context.Context, req outputRequest) (Spool, error) {
	sp, err := s.spool(ctx, "executor.Output", req.ID, req.Stream)
	if err != nil {
		return Spool{}, err
	}
	return sp.await(ctx, req.Beyond)
}

func (s *supervisor) ack(ctx context.Context, req ackRequest) (struct{}, error) {
	sp, err := s.spool(ctx, "executor.Ack", req.ID, req.Stream)
	if err != nil {
		return struct{}{}, err
	}
	return struct{}{}, sp.ack(req.Offset)
}

func (s *supervisor) spool(ctx context.Context, op sys.Op, id ID, stream Stream) (*spool, error) {
	if stream != Stdout && stream != Stderr {
		return nil, sys.E(op, sys.Invalid, fmt.Sprintf("no output has the number %d: expected 1 or 2", int(stream)))
	}
	p, err := s.find(ctx, op, id)
	if err != nil {
		return nil, err
	}
	return p.spools[stream-Stdout], nil
}

func (s *supervisor) list(context.Context, struct{}) ([]Process, error) {
	type one struct {
		Process
		group  *group
		family family
	}
	s.mu.Lock()
	var those []one
	for _, p := range s.all() {
		if p.run == 0 && p.status == nil {
			continue // being started
		}
		o := one{Process: Process{ID: p.id, PID: p.proc.PID, Started: p.begun}, group: p.group, family: s.family(p)}
		o.Status = p.status
		those = append(those, o)
	}
	s.mu.Unlock()
	list := make([]Process, 0, len(those))
	for _, o := range those {
		if o.Status == nil {
			o.usage(o.group, o.family)
		} else {
			o.CPU = o.Status.CPU
		}
		list = append(list, o.Process)
	}
	return list, nil
}

// usage measures what belongs to a process.
func (p *Process) usage(g *group, f family) {
	pids := g.pids
	if !g.tracked() {
		pids = f.pids
	}
	for _, pid := range pids() {
		if st, err := readStat(pid); err == nil { // else it has just ended
			p.Count++
			p.RSS += st.rss
			p.CPU += st.cpu
		}
	}
	p.CPU = max(p.CPU, g.cpu())
}
