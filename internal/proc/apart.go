package proc

import (
	"context"

	"github.com/koinon/koinon/internal/proc/procpb"
	"github.com/koinon/koinon/internal/rsm"
)

// Where the tree is in a database, no command of the log changes both. What is
// to be seen together with the end of a task, its outputs, then appears just
// before the table says so; files of processes are written just after. All of
// it is done again when the leader dies in between, because the node reports
// until it is answered.

// publishApart lets the outputs of those tasks appear that reports end well.
// Where that fails the report says so.
func (s *Server) publishApart(ctx context.Context, e *procpb.Ended) error {
	for _, r := range e.Reports {
		t, spec, err := s.row(r)
		if err != nil {
			return err
		}
		if t == nil || spec.Out == "" || !completes(t, r) {
			continue
		}
		f := files{treeNow{ctx, s.opt.Tree}}
		out := outOfItem(spec, Item(spec, t.Index))
		if err := f.publish(spec, t, out); err != nil {
			r.Process.ExitCode = ExitTrouble
			note(r.Process, notPublished(out, err))
		}
	}
	return nil
}

// completes says that with a report a task has ended well.
func completes(t *procpb.Task, r *procpb.Report) bool {
	if t.State != procpb.State_RUNNING || t.Epoch != r.Epoch || r.Process.GetExitCode() != 0 || r.Process.GetSignal() != 0 {
		return false
	}
	for rank, p := range t.Procs {
		if uint32(rank) != r.Rank && p.State != procpb.State_EXITED {
			return false
		}
	}
	return true
}

// row reads the task of a report, nil when there is none.
func (s *Server) row(r *procpb.Report) (*procpb.Task, *procpb.Spec, error) {
	var t *procpb.Task
	var spec *procpb.Spec
	found := false
	err := s.group.ReadLocal(rsm.NSProc, func(v rsm.Reader) (err error) {
		t = &procpb.Task{}
		if found, err = load(v, key(rowTask, r.Job, uint64(r.Index)), t); err == nil && found {
			spec, err = loadSpec(v, r.Job)
		}
		return err
	})
	if err != nil || !found || spec == nil || r.Process == nil {
		return nil, nil, err
	}
	return t, spec, nil
}

// recordApart writes the files of processes that reports speak of.
func (s *Server) recordApart(ctx context.Context, reports []*procpb.Report) error {
	f := files{treeNow{ctx, s.opt.Tree}}
	for _, r := range reports {
		t, spec, err := s.row(r)
		if err != nil {
			return err
		}
		if t == nil || int(r.Rank) >= len(t.Procs) || t.Epoch != r.Epoch {
			continue
		}
		home, err := f.home(spec, r.Job, r.Index, r.Rank)
		if err != nil {
			return err
		}
		if err := f.status(home, spec, t, r.Rank); err != nil {
			return err
		}
		if !r.Recorded && r.Process.EndedNs != 0 {
			if err := f.output(home, spec, r); err != nil {
				return err
			}
		}
	}
	return nil
}

// forgetFiles deletes the files of the jobs that the next Expire forgets.
func (s *Server) forgetFiles(ctx context.Context, before int64) error {
	type process struct {
		spec *procpb.Spec
		task *procpb.Task
	}
	var all []process
	err := s.group.ReadLocal(rsm.NSProc, func(v rsm.Reader) error {
		all = nil
		var ids []uint64
		err := v.Scan([]byte{rowEnded}, key(rowEnded, uint64(max(before, 0))), func(k, _ []byte) bool {
			ids = append(ids, numbers(k)[1])
			return len(ids) < expireMax
		})
		for _, id := range ids {
			spec, serr := loadSpec(v, id)
			if err = firstError(err, serr); err != nil {
				return err
			}
			err = loadTasks(v, id, 0, func(t *procpb.Task) bool {
				all = append(all, process{spec, t.CloneVT()})
				return true
			})
		}
		return err
	})
	if err != nil {
		return err
	}
	f := files{treeNow{ctx, s.opt.Tree}}
	for _, p := range all {
		for rank := range p.task.Procs {
			if err := f.forget(ProcessName(p.spec, p.task.Job, p.task.Index, uint32(rank))); err != nil {
				s.opt.Logger.Debug("files of a process stay", "err", err)
			}
		}
	}
	return nil
}
