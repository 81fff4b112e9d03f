package proc

import (
	"context"

	"github.com/koinon/koinon/internal/proc/procpb"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
)

// newJob is a job on its way into the log.
type newJob struct {
	done chan struct{} // closed when the rest is known
	id   uint64
	err  error
}

// submit makes a job, once for a request, and returns its ID. It goes on when ctx is done: whoever comes with the same request
// waits for the first.
func (s *Server) submit(ctx context.Context, r *procpb.Submit) (uint64, error) {
	const op = sys.Op("proc.Submit")
	l, err := s.leader(ctx, op)
	if err != nil {
		return 0, err
	}
	j := l.coming[string(r.Request)]
	if j == nil {
		j = &newJob{done: make(chan struct{})}
		l.coming[string(r.Request)] = j
		s.spawn(func() {
			j.id, j.err = s.bring(l, r)
			s.mu.Lock()
			delete(l.coming, string(r.Request))
			s.mu.Unlock()
			close(j.done)
		})
	}
	s.mu.Unlock()
	select {
	case <-j.done:
		return j.id, j.err
	case <-s.ctx.Done():
		return 0, errStopping(op)
	case <-ctx.Done():
		return 0, sys.E(op, sys.Interrupted, ctx.Err())
	}
}

// bring brings a job into the log, by its start or else by itself, if it is not there. What it waits for may take as long as the
// log stands still: a request that comes again meanwhile finds it.
func (s *Server) bring(l *leadership, r *procpb.Submit) (uint64, error) {
	const op = sys.Op("proc.Submit")
	if id, err := s.submitted(s.ctx, r); err != nil || id != 0 {
		return id, err
	}
	full := s.group.Status().NoSpace // then its start would be asked for in vain, and hold what it needs meanwhile
	s.mu.Lock()
	if s.lead != l {
		s.mu.Unlock()
		return 0, s.group.NotLeader(op)
	}
	l.last++
	r.Job = l.last
	var a *attempt
	if !full && !l.unsure[string(r.Request)] {
		a = s.prompt(l, r)
	}
	s.mu.Unlock()
	if a == nil {
		return s.bringAlone(l, r)
	}
	select {
	case <-a.done:
	case <-l.gone:
	case <-s.ctx.Done():
		return 0, errStopping(op)
	}
	s.mu.Lock()
	made, leads := a.job.submit == nil, s.lead == l
	s.mu.Unlock()
	switch {
	case made:
		return r.Job, nil
	case !leads:
		return 0, s.group.NotLeader(op)
	}
	id, err := s.bringAlone(l, r)
	s.mu.Lock()
	if id != r.Job {
		l.model.unforesee(a.job) // else its row takes over what is known of it, such as who has refused it
	}
	s.mu.Unlock()
	return id, err
}

// bringAlone submits a job, to be started later.
func (s *Server) bringAlone(l *leadership, r *procpb.Submit) (uint64, error) {
	ctx, cancel := context.WithTimeout(s.ctx, proposeTimeout)
	defer cancel()
	res, _, err := s.propose(ctx, &procpb.Command{Op: &procpb.Command_Submit{Submit: r}})
	if sys.Is(err, sys.Unavailable) || sys.Is(err, sys.Interrupted) {
		s.mu.Lock()
		l.unsure[string(r.Request)] = true
		s.mu.Unlock()
	}
	signal(s.wake)
	return res.GetJob(), err
}

func errStopping(op sys.Op) error { return sys.E(op, sys.Unavailable, "the node is stopping") }

// submitted is the job that a request has made, 0 if none.
func (s *Server) submitted(ctx context.Context, r *procpb.Submit) (id uint64, err error) {
	err = s.group.Read(ctx, rsm.NSProc, func(v rsm.Reader) error {
		raw, err := v.Get(append([]byte{rowRequest}, r.Request...))
		id = number(raw)
		return err
	})
	return id, err
}

// prompt tries to start a job that is in no row yet, so that one record makes it and starts it: who waits for it waits for one
// round of the log less (docs/decisions/0026-prompt-starts.md). It returns nil where that cannot be now. The caller holds mu.
func (s *Server) prompt(l *leadership, r *procpb.Submit) *attempt {
	if spec := r.Spec; l.waiting > 0 || spec.Array || len(spec.After) > 0 || spec.Out != "" || len(r.Request) != 16 || Check(spec) != nil {
		return nil
	}
	now := s.opt.Clock.Boot()
	j := l.model.foresee(r, l.dayTime(now))
	s.plan(l, now)
	s.pump(l)
	signal(s.wake) // to look at what is under way more often
	a := j.tasks[r.Spec.First].attempt
	if a == nil {
		l.model.unforesee(j)
	}
	return a
}
