//go:build linux

package agent

import (
	"context"
	"fmt"
	"sync"

	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/proc/procpb"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/wire"
)

// inputMax bounds the bytes that wait for a process to read them.
const inputMax = 256 << 10

// input is what was sent to a process's standard input and is on its way.
type input struct {
	mu     sync.Mutex
	buf    []byte
	at     int64 // offset of the end of buf
	ended  bool  // nothing follows
	closed bool  // nobody reads any more
	// lost: an earlier run of the daemon had taken some, and how much of it the
	// process has got is not known.
	lost bool
	news wake // for the one who feeds
	room wake // for those who have more
}

func (in *input) init() { in.news, in.room = newWake(), newWake() }

// put takes in what there is room for, of what follows on what is there.
func (in *input) put(q *procpb.StdinRequest, data []byte) (*procpb.StdinReply, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	switch {
	case in.lost:
		return nil, sys.E(sys.Unavailable, "the node's daemon was started again while input was sent: how much of it the process has read is not known")
	case in.closed:
		return &procpb.StdinReply{Offset: in.at, Closed: true}, nil
	case q.Offset < 0 || q.Offset > in.at:
		return nil, sys.E(sys.Invalid, fmt.Sprintf("the input is known up to byte %d, what comes begins at %d", in.at, q.Offset))
	}
	end := q.Offset + int64(len(data))
	if data = data[min(int64(len(data)), in.at-q.Offset):]; in.ended && len(data) > 0 {
		return nil, sys.E(sys.Invalid, fmt.Sprintf("the input was ended at byte %d", in.at))
	}
	n := min(len(data), inputMax-len(in.buf))
	in.buf = append(in.buf, data[:n]...)
	in.at += int64(n)
	if q.End && in.at >= end {
		in.ended = true
	}
	in.news.set()
	return &procpb.StdinReply{Offset: in.at}, nil
}

// full says that there is no room.
func (in *input) full() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return !in.closed && !in.lost && len(in.buf) >= inputMax
}

// take returns what waits; end says that nothing follows.
func (in *input) take() (b []byte, end bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	b, in.buf = in.buf, nil
	in.room.set()
	return b, in.ended
}

// shut says that nobody reads any more.
func (in *input) shut() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.closed, in.buf = true, nil
	in.room.set()
}

// feed writes to a process what is sent to it, until the input or the process
// ends.
func (a *Agent) feed(ctx context.Context, p *process) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer p.input.shut()
	go func() { // ends with feed
		select {
		case <-p.over:
			cancel()
		case <-ctx.Done():
		}
	}()
	w, err := a.exec.Stdin(ctx, p.id)
	if err != nil {
		if !sys.Is(err, sys.NotExist) && ctx.Err() == nil {
			a.log.Warn("the input of a process cannot be opened", "process", p.name, "err", err)
		}
		return
	}
	for {
		b, end := p.input.take()
		if len(b) > 0 {
			if _, err := w.Write(b); err != nil {
				break // nobody reads any more, or the agent stops
			}
			continue
		}
		if end {
			break
		}
		select {
		case <-ctx.Done():
		case <-p.input.news:
			continue
		}
		break
	}
	if a.runCtx.Err() != nil {
		return // the process goes on and reads on
	}
	if err := w.Close(); err != nil && ctx.Err() == nil {
		a.log.Warn("the input of a process cannot be closed", "process", p.name, "err", err)
	}
}

// serveStdin takes input of a process. It waits for room, not for the process to
// read.
func (a *Agent) serveStdin(ctx context.Context, req *wire.Request) (wire.Response, error) {
	const op = sys.Op("agent.Stdin")
	q := &procpb.StdinRequest{}
	if err := pb.Unmarshal(req.Header, q); err != nil {
		return wire.Response{}, sys.E(op, sys.Invalid, err)
	}
	p := a.find(taskKey{q.Job, q.Index, q.Epoch}, q.Rank)
	switch {
	case p == nil:
		return wire.Response{}, sys.E(op, errNoProcess)
	case !p.task.res.Spec.Stdin:
		return wire.Response{}, sys.E(op, sys.Invalid, "the process was submitted without input")
	case p.isOver():
		return respond(&procpb.StdinReply{Offset: q.Offset, Closed: true}, nil)
	}
	for p.input.full() {
		select {
		case <-ctx.Done():
			return wire.Response{}, sys.E(op, sys.Unavailable, "the process does not read its input: send it again")
		case <-p.over:
		case <-p.input.room:
			continue
		}
		break
	}
	reply, err := p.input.put(q, req.Payload)
	if err != nil {
		return wire.Response{}, sys.E(op, err)
	}
	return respond(reply, nil)
}
