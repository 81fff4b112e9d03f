package proc

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/proc/procpb"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
)

// look declares nodes lost and ends what has run for too long. The caller holds
// mu.
func (s *Server) look(l *leadership, now time.Duration) {
	for id, n := range l.model.nodes {
		silent := now - max(n.heard, l.since)
		if n.row.Lost || n.losing || silent <= s.opt.LostAfter {
			continue
		}
		n.losing = true
		fence := n.row.Fence
		s.opt.Logger.Warn("a node is lost: what ran there has ended", "node", sys.NodeID(id), "silent", silent.Round(time.Second))
		s.spawn(func() { s.lose(l, id, fence) })
	}
	for _, j := range l.model.live {
		if j.spec.TimeoutNs == 0 {
			continue
		}
		for _, t := range j.live {
			ran := now - t.known    // by a clock that does not jump
			if t.known <= l.since { // earlier leaders have counted too
				ran += time.Duration(max(0, l.wall-t.row.StartedNs))
			}
			if t.row.State == procpb.State_RUNNING && t.row.Signal == 0 && !t.timed && ran >= time.Duration(j.spec.TimeoutNs) {
				t.timed = true
				s.spawn(func() { s.timeOut(l, t) })
			}
		}
	}
}

// lose declares a node lost.
func (s *Server) lose(l *leadership, id, fence uint64) {
	ctx, cancel := context.WithTimeout(s.ctx, proposeTimeout)
	defer cancel()
	why := fmt.Sprintf("its node, %v, was not heard of for %v", sys.NodeID(id), s.opt.LostAfter)
	_, _, err := s.propose(ctx, &procpb.Command{Op: &procpb.Command_LoseNode{LoseNode: &procpb.LoseNode{Node: id, Fence: fence, Why: why}}})
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lead != l {
		return
	}
	if err != nil {
		l.model.nodes[id].losing = false // tried again
		return
	}
	l.coord.Lost(PartyOf(id, fence))
	s.follow(l, s.opt.Clock.Boot())
	s.pump(l)
}

func (s *Server) timeOut(l *leadership, t *taskModel) {
	ctx, cancel := context.WithTimeout(s.ctx, proposeTimeout)
	defer cancel()
	_, _, err := s.propose(ctx, &procpb.Command{Op: &procpb.Command_Kill{Kill: &procpb.Kill{
		Job: t.row.Job, Indices: []uint32{t.row.Index}, Signal: sigTerm, By: "its timeout", TimedOut: true}}})
	if err != nil {
		s.mu.Lock()
		t.timed = s.lead != l // tried again
		s.mu.Unlock()
	}
}

// tellEnds has nodes end what somebody wants ended, and what is left of gangs
// that are broken. The caller holds mu.
func (s *Server) tellEnds(l *leadership, now time.Duration) {
	for _, j := range l.model.live {
		for _, t := range j.live {
			want := t.row.Signal
			if want == 0 && t.row.State == procpb.State_RUNNING && broken(t.row) {
				want = sigTerm
			}
			if want == 0 || t.row.State != procpb.State_RUNNING || !t.tellNow(want, now) {
				continue
			}
			t.told, t.toldSig = now, want
			s.signal(t.row, want, graceOf(j.spec))
		}
	}
}

// tellNow reports whether the nodes of a task are to be told a signal now: when they have not been, or so long ago that it may
// have been lost.
func (t *taskModel) tellNow(sig uint32, now time.Duration) bool {
	return t.told == 0 || t.toldSig != sig || now-t.told >= againEvery
}

func graceOf(spec *procpb.Spec) int64 {
	if spec.GraceNs > 0 {
		return spec.GraceNs
	}
	return int64(GraceDefault)
}

// signalSoon is how long after a node did not have a task it is told a signal again.
const signalSoon = 20 * time.Millisecond

// signal has the nodes of a task signal its processes. The caller holds mu.
func (s *Server) signal(t *procpb.Task, sig uint32, grace int64) {
	header := pb.Marshal(&procpb.SignalRequest{Job: t.Job, Index: t.Index, Epoch: t.Epoch, Signal: sig, GraceNs: grace})
	var told []uint64
	for _, p := range t.Procs {
		if Over(p.State) || slices.Contains(told, p.Node) {
			continue
		}
		told = append(told, p.Node)
		conn := s.opt.Cluster.Conn(sys.NodeID(p.Node))
		if conn == nil {
			continue
		}
		s.spawn(func() {
			ctx, cancel := context.WithTimeout(s.ctx, againEvery)
			defer cancel()
			for {
				reply, err := conn.Call(ctx, MethodSignal, header, nil)
				if err == nil {
					reply.Release()
					return
				}
				if !sys.Is(err, sys.NotExist) || ctx.Err() != nil {
					s.opt.Logger.Debug("a node was not reached with a signal", "err", err)
					return
				}
				s.pause(signalSoon) // the node may be about to take the task in
			}
		})
	}
}

// sweep forgets what ended before a time of day, and deletes the private directories of
// outputs that will never appear.
func (s *Server) sweep(before int64) {
	ctx, cancel := context.WithTimeout(s.ctx, proposeTimeout)
	defer cancel()
	if err := s.expire(ctx, before); err != nil && s.ctx.Err() == nil {
		s.opt.Logger.Debug("old jobs are forgotten later", "err", err)
	}
	if err := s.sweepOut(ctx); err != nil && s.ctx.Err() == nil {
		s.opt.Logger.Debug("leftovers of outputs are deleted later", "err", err)
	}
}

// expireMax is how many jobs one command forgets.
const expireMax = 20

func (s *Server) expire(ctx context.Context, before int64) error {
	for {
		if s.opt.Machine.treeApart {
			if err := s.forgetFiles(ctx, before); err != nil {
				return err
			}
		}
		res, inos, err := s.propose(ctx, &procpb.Command{Op: &procpb.Command_Expire{Expire: &procpb.Expire{BeforeNs: before, Max: expireMax}}})
		if err != nil {
			return err
		}
		if err := s.barrier(ctx, inos); err != nil || res.Count < expireMax {
			return err
		}
	}
}

// barrier waits until every mount sees what a command has done to the tree.
func (s *Server) barrier(ctx context.Context, inos []sys.Ino) error {
	if len(inos) == 0 {
		return nil
	}
	return s.opt.Barrier(ctx, inos...)
}

// sweepOut deletes private directories whose task does not run any more: what
// was to appear has been renamed.
func (s *Server) sweepOut(ctx context.Context) error {
	f := files{treeNow{ctx, s.opt.Tree}}
	dir, err := f.walk(rootCred, OutDir)
	if sys.Is(err, sys.NotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	entries, err := f.list(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		live, err := s.outInUse(string(e.Name))
		if err != nil {
			return err
		}
		if live {
			continue
		}
		if err := f.removeAll(dir, e); err != nil {
			return err
		}
	}
	return nil
}

// outInUse says whether a private directory is that of a try that runs or is
// about to.
func (s *Server) outInUse(name string) (bool, error) {
	task, epoch, ok := strings.Cut(name, "-")
	n, err := ParseName(task)
	e, perr := strconv.ParseUint(epoch, 10, 32)
	if !ok || err != nil || perr != nil {
		return true, nil // not ours
	}
	var t procpb.Task
	var found bool
	err = s.group.ReadLocal(rsm.NSProc, func(r rsm.Reader) (err error) {
		found, err = load(r, key(rowTask, n.Job, uint64(max(n.Index, 0))), &t)
		return err
	})
	return found && !Over(t.State) && uint64(t.Epoch) <= e, err
}

// list lists a directory as a whole.
func (f files) list(dir uint64) ([]*metapb.Entry, error) {
	var out []*metapb.Entry
	for after := uint64(0); ; {
		a, err := f.tree.Query(&metapb.Query{Cred: rootCred, Op: &metapb.Query_ReadDir{ReadDir: &metapb.ReadDir{Ino: dir, After: after, Limit: 1024}}})
		if err != nil {
			return nil, err
		}
		out = append(out, a.Entries...)
		if a.End || len(a.Entries) == 0 {
			return out, nil
		}
		after = a.Entries[len(a.Entries)-1].Cookie
	}
}

// removeAll deletes an entry and what is below it.
func (f files) removeAll(parent uint64, e *metapb.Entry) error {
	if sys.FileType(e.Type) != sys.TypeDir {
		_, err := f.tree.Do(&metapb.Command{Cred: rootCred, Op: &metapb.Command_Unlink{Unlink: &metapb.Unlink{Parent: parent, Name: e.Name}}})
		return err
	}
	entries, err := f.list(e.Ino)
	if err != nil {
		return err
	}
	for _, below := range entries {
		if err := f.removeAll(e.Ino, below); err != nil {
			return err
		}
	}
	_, err = f.tree.Do(&metapb.Command{Cred: rootCred, Op: &metapb.Command_Rmdir{Rmdir: &metapb.Rmdir{Parent: parent, Name: e.Name}}})
	return err
}
