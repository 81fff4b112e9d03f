package proc

import (
	"bytes"
	"context"

	"github.com/koinon/koinon/internal/proc/procpb"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
)

// submit makes a job, once for a request, and returns its ID. Where it can start at once, the nodes are asked before it is in the
// log, and one record makes it and starts it: who waits for it waits for one round of the log less
// (docs/decisions/0026-prompt-starts.md).
func (s *Server) submit(ctx context.Context, r *procpb.Submit) (uint64, error) {
	const op = sys.Op("proc.Submit")
	for {
		if id, err := s.submitted(ctx, r); err != nil || id != 0 {
			return id, err
		}
		l, err := s.leader(ctx, op)
		if err != nil {
			return 0, err
		}
		a, again := l.model.coming(r.Request), true
		if a == nil {
			l.last++
			r.Job = l.last
			a, again = s.prompt(l, r), false
		}
		s.mu.Unlock()
		if a == nil {
			break
		}
		select {
		case <-a.done:
		case <-l.gone:
			return 0, s.group.NotLeader(op)
		case <-s.ctx.Done():
			return 0, sys.E(op, sys.Unavailable, "the node is stopping")
		case <-ctx.Done():
			return 0, sys.E(op, sys.Interrupted, ctx.Err())
		}
		if again {
			continue // whoever came first with this request has done it, or has left it
		}
		s.mu.Lock()
		made := a.job.submit == nil
		s.mu.Unlock()
		if made {
			return r.Job, nil
		}
		break
	}
	res, _, err := s.propose(ctx, &procpb.Command{Op: &procpb.Command_Submit{Submit: r}})
	signal(s.wake)
	return res.GetJob(), err
}

// submitted is the job that a request has made, 0 if none.
func (s *Server) submitted(ctx context.Context, r *procpb.Submit) (id uint64, err error) {
	err = s.group.Read(ctx, rsm.NSProc, func(v rsm.Reader) error {
		raw, err := v.Get(append([]byte{rowRequest}, r.Request...))
		id = number(raw)
		return err
	})
	return id, err
}

// prompt tries to start a job that is in no row yet. It returns nil where that cannot be now. The caller holds mu.
func (s *Server) prompt(l *leadership, r *procpb.Submit) *attempt {
	if spec := r.Spec; l.waiting > 0 || spec.Array || len(spec.After) > 0 || spec.Out != "" || len(r.Request) != 16 || Check(spec) != nil {
		return nil
	}
	now := s.opt.Clock.Boot()
	j := l.model.foresee(r, l.dayTime(now))
	s.plan(l, now)
	a := j.tasks[r.Spec.First].attempt
	if a == nil {
		l.model.drop(r.Job)
		return nil
	}
	s.pump(l)
	return a
}

// coming is the attempt that is to make the job of a request.
func (m *model) coming(request []byte) *attempt {
	for _, a := range m.attempts {
		if a.job.submit != nil && bytes.Equal(a.job.submit.Request, request) {
			return a
		}
	}
	return nil
}
