//go:build linux

package agent

import (
	"context"
	"errors"
	"io"
	"os"
	"syscall"
	"time"

	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/proc"
	"github.com/koinon/koinon/internal/proc/procpb"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/vfs"
	"github.com/koinon/koinon/internal/wire"
)

const (
	// outputMax bounds the bytes of either output in one reply.
	outputMax = 256 << 10
	// outputWaitMax bounds how long a request for output may wait.
	outputWaitMax = 30 * time.Second
)

// serveSignal passes on a signal to the processes of a task. NotExist: the node
// has not got the task, perhaps not yet.
func (a *Agent) serveSignal(ctx context.Context, req *wire.Request) (wire.Response, error) {
	const op = sys.Op("agent.Signal")
	q := &procpb.SignalRequest{}
	switch err := pb.Unmarshal(req.Header, q); {
	case err != nil:
		return wire.Response{}, sys.E(op, sys.Invalid, err)
	case req.Peer.Node == 0:
		return wire.Response{}, sys.E(op, sys.Access, "only the leader passes on signals: ask it by `koinon kill`")
	}
	sig := syscall.Signal(q.Signal)
	order := &stopOrder{signal: sig}
	if sig == syscall.SIGTERM {
		if order.grace = time.Duration(q.GraceNs); order.grace == 0 {
			order.grace = proc.GraceDefault
		}
	}
	a.mu.Lock()
	t := a.tasks[taskKey{q.Job, q.Index, q.Epoch}]
	a.mu.Unlock()
	if t == nil {
		return wire.Response{}, sys.E(op, errNoProcess)
	}
	var errs []error
	for _, p := range t.procs {
		if p.taken || p.isOver() {
			continue
		}
		if sig == syscall.SIGTERM || sig == syscall.SIGKILL {
			a.stop(ctx, p, order)
			continue
		}
		select { // what is being started hears of it, too
		case <-p.began:
		case <-p.over:
		case <-ctx.Done():
			return wire.Response{}, sys.E(op, sys.Interrupted, ctx.Err())
		}
		if err := a.exec.Signal(ctx, p.id, sig); err != nil && !sys.Is(err, sys.NotExist) {
			errs = append(errs, err)
		}
	}
	return wire.Response{}, errors.Join(errs...)
}

// serveOutput answers with what a process has printed.
func (a *Agent) serveOutput(ctx context.Context, req *wire.Request) (wire.Response, error) {
	const op = sys.Op("agent.Output")
	q := &procpb.OutputRequest{}
	if err := pb.Unmarshal(req.Header, q); err != nil {
		return wire.Response{}, sys.E(op, sys.Invalid, err)
	}
	waiting, cancel := context.WithTimeout(ctx, min(time.Duration(max(0, q.WaitNs)), outputWaitMax))
	defer cancel()
	p := a.await(waiting, taskKey{q.Job, q.Index, q.Epoch}, q.Rank)
	if p == nil {
		return respond(&procpb.OutputReply{Gone: true}, nil)
	}
	r := &reader{a: a, p: p, at: [2]int64{q.Stdout, q.Stderr}}
	for {
		reply, err := r.read(ctx)
		if err != nil || reply.Final || reply.Gone || len(reply.Stdout)+len(reply.Stderr) > 0 {
			return respond(reply, err)
		}
		if !r.wait(waiting) {
			return respond(reply, nil)
		}
	}
}

// await is find for those who have heard of a process from the leader: that it
// runs may be known there before it is here, where it is reserved only.
func (a *Agent) await(ctx context.Context, k taskKey, rank uint32) *process {
	for {
		a.mu.Lock()
		settled, held := a.settled, false
		for _, h := range a.holds {
			held = held || taskKey{h.res.Job, h.res.Index, h.res.Epoch} == k
		}
		a.mu.Unlock()
		if p := a.find(k, rank); p != nil || !held {
			return p
		}
		select {
		case <-settled:
		case <-ctx.Done():
			return nil
		}
	}
}

// reader reads what a process has printed, for one request.
type reader struct {
	a  *Agent
	p  *process
	at [2]int64 // -1: not wanted
}

// read returns what there is.
func (r *reader) read(ctx context.Context) (*procpb.OutputReply, error) {
	reply := &procpb.OutputReply{}
	over := r.p.isOver() // before reading: then this is the end
	final := over
	for i, to := range []*[]byte{&reply.Stdout, &reply.Stderr} {
		if r.at[i] < 0 {
			continue
		}
		b, err := r.bytes(ctx, i)
		if sys.Is(err, sys.NotExist) {
			return &procpb.OutputReply{Gone: true}, nil
		} else if err != nil {
			return nil, err
		}
		*to = b
		final = final && r.at[i]+int64(len(b)) >= r.p.printed[i]
	}
	if over && !final && len(reply.Stdout)+len(reply.Stderr) == 0 {
		return &procpb.OutputReply{Gone: true}, nil // the executor has forgotten it
	}
	if final {
		r.p.mu.Lock()
		reply.Final, reply.Process = true, r.p.end.CloneVT()
		r.p.mu.Unlock()
	}
	return reply, nil
}

// bytes reads an output from the spool, or from the tree what the spool has
// given up.
func (r *reader) bytes(ctx context.Context, i int) ([]byte, error) {
	out := r.a.exec.Output(r.p.id, streams[i])
	size := int64(0)
	if info, err := os.Stat(out.Path()); err == nil { // else it has printed nothing
		size = info.Size()
	}
	b := make([]byte, min(outputMax, max(0, size-r.at[i])))
	n, err := out.ReadAt(b, r.at[i])
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	r.p.mu.Lock()
	gone, ino := r.at[i] < r.p.acked[i], r.p.files[i]
	r.p.mu.Unlock()
	if !gone {
		return b[:n], nil
	}
	if ino == 0 {
		return nil, errNoProcess // it was cut
	}
	fs, err := r.a.opts.FS(ctx)
	if err != nil {
		return nil, err
	}
	f, err := fs.Open(ctx, vfs.Root(), ino, 0)
	if err != nil {
		return nil, err
	}
	defer f.Release()
	n, err = f.ReadAt(ctx, b, r.at[i])
	if errors.Is(err, io.EOF) {
		if err = nil; n == 0 {
			err = errNoProcess // it was cut
		}
	}
	return b[:n], err
}

// quickEnd is how long the first output of a process may wait for its end.
const quickEnd = 20 * time.Millisecond

// wait waits for more, or for the end. False: for too long.
func (r *reader) wait(ctx context.Context) bool {
	select {
	case <-r.p.began: // before there is nothing to wait for at the executor
	case <-ctx.Done():
		return false
	}
	if r.at[0] <= 0 && r.at[1] <= 0 {
		quick := time.NewTimer(quickEnd)
		defer quick.Stop()
		select {
		case <-r.p.over: // as many do: the executor need not be asked
			return true
		case <-quick.C:
		case <-ctx.Done():
			return false
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	grown := make(chan struct{}, len(streams))
	waiting := 0
	for i, s := range streams {
		if r.at[i] < 0 {
			continue
		}
		waiting++
		go func() {
			if spool, err := r.a.exec.Output(r.p.id, s).Wait(ctx, r.at[i]); err != nil || spool.Size <= r.at[i] {
				<-ctx.Done() // it has ended, which is told elsewhere
			}
			grown <- struct{}{}
		}()
	}
	ok := true
	select {
	case <-grown:
		waiting--
	case <-r.p.over:
	case <-ctx.Done():
		ok = false
	}
	cancel()
	for ; waiting > 0; waiting-- {
		<-grown
	}
	return ok
}
