package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"time"
)

// ErrFailed says that operations failed; the report tells which.
var ErrFailed = errors.New("operations failed")

// A run is one call of Run.
type run struct {
	opt    Options
	report *Report
	groups []group
	plan   *plan
	roots  []string // the fresh directory in each target
	rounds map[resultKey][]*outcome
	step   int
	steps  int
}

type resultKey struct {
	test    string
	workers int
	target  int
}

// Run measures as opt says, in a fresh sub-directory of each directory that is
// gone again when Run returns, also when ctx is cancelled. The report is not
// nil once measuring has begun; it is partial when the error is not nil.
// ErrFailed means that some operations failed and all tests ran.
//
// Run raises GOMAXPROCS while it works, so that threads that wait in the
// kernel keep nobody from running.
func Run(ctx context.Context, opt Options) (rep *Report, err error) {
	opt, err = opt.checked()
	if err != nil {
		return nil, err
	}
	r := &run{opt: opt, rounds: map[resultKey][]*outcome{}}
	if err := r.prepare(); err != nil {
		return nil, err
	}
	procs := runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), slices.Max(opt.Workers)+2))
	defer runtime.GOMAXPROCS(procs)

	defer func() {
		for _, root := range r.roots {
			if rerr := os.RemoveAll(root); rerr != nil {
				err = errors.Join(err, fmt.Errorf("removing what the benchmark made: %w; remove %s by hand", rerr, root))
			}
		}
	}()
	for _, dir := range opt.Dirs {
		root, err := os.MkdirTemp(dir, "koinon-bench-*")
		if err != nil {
			return nil, fmt.Errorf("%w; give a directory that you may write to", err)
		}
		r.roots = append(r.roots, root)
	}
	err = r.all(ctx)
	r.finish(err == nil)
	if err == nil && r.report.Errors > 0 {
		err = fmt.Errorf("%d %w", r.report.Errors, ErrFailed)
	}
	return r.report, err
}

// prepare gathers the facts and decides what will run.
func (r *run) prepare() error {
	o := &r.opt
	r.report = &Report{
		Command: o.Command, Version: o.Version, Started: time.Now(), Machine: machine(),
		Settings: Settings{
			Workers: o.Workers, Files: o.Files, SmallBytes: o.SmallSize, LargeBytes: o.LargeSize, RandomOps: o.RandomOps,
			DurationSec: o.Duration.Seconds(), Rounds: o.Rounds, Shared: o.Shared,
		},
	}
	if m := r.report.Machine; m.Load > float64(m.Cores)/2 {
		r.report.Notes = append(r.report.Notes, fmt.Sprintf("the machine was busy before the run (load %.2f on %d cores): repeat it when nothing else runs", m.Load, m.Cores))
	}
	for i, dir := range o.Dirs {
		t, err := target(string(rune('A'+i)), dir)
		if err != nil {
			return err
		}
		r.report.Targets = append(r.report.Targets, t)
	}
	for _, g := range groups() {
		if !slices.ContainsFunc(g.steps, func(s step) bool { return o.wants(s.name) }) {
			continue
		}
		if g.name == "tree" {
			if ok, err := r.prepareTree(); err != nil {
				return err
			} else if !ok {
				continue
			}
		}
		r.groups = append(r.groups, r.trim(g))
	}
	for _, g := range r.groups {
		r.steps += len(g.steps) * len(o.Workers) * o.Rounds * len(o.Dirs)
	}
	if err := r.checkSpace(); err != nil {
		return err
	}
	r.prepareCold()
	return nil
}

// trim leaves out the steps of g that nobody asked for or needs.
func (r *run) trim(g group) group {
	needed := map[string]bool{}
	for _, s := range g.steps {
		if r.opt.wants(s.name) {
			needed[s.name] = true
			for _, n := range s.needs {
				needed[n] = true
			}
		}
	}
	g.steps = slices.DeleteFunc(g.steps, func(s step) bool { return !needed[s.name] })
	return g
}

func (r *run) prepareTree() (bool, error) {
	if r.opt.Tree == "" {
		note := cmp.Or(r.opt.NoTreeNote, "no source tree was given")
		r.report.Notes = append(r.report.Notes, "copy-in, read-tree, walk and remove were left out: "+note)
		return false, nil
	}
	root, err := filepath.Abs(r.opt.Tree)
	if err != nil {
		return false, err
	}
	if r.plan, err = readPlan(root, r.opt.TreeFiles); err != nil {
		return false, err
	}
	s := &r.report.Settings
	s.Tree, s.TreeFiles, s.TreeDirs, s.TreeBytes = root, len(r.plan.files), len(r.plan.dirs), r.plan.bytes
	if !r.plan.whole {
		r.report.Notes = append(r.report.Notes, fmt.Sprintf("of the source tree the first %d files were used", len(r.plan.files)))
	}
	if r.plan.skipped > 0 {
		r.report.Notes = append(r.report.Notes, fmt.Sprintf("%d symlinks and special files of the source tree were left out", r.plan.skipped))
	}
	return true, nil
}

// checkSpace refuses a run that would fill a target.
func (r *run) checkSpace() error {
	var need int64
	for _, g := range r.groups {
		switch g.name {
		case "small", "small-fsync":
			need = max(need, int64(r.opt.Files)*r.opt.SmallSize)
		case "large", "large-fsync":
			need = max(need, r.opt.LargeSize)
		case "tree":
			need = max(need, r.plan.bytes)
		}
	}
	for _, t := range r.report.Targets {
		if t.TotalBytes > 0 && t.FreeBytes < need+need/8 {
			return fmt.Errorf("%s has %s free, and the tests need %s: choose smaller sizes", t.Dir, formatBytes(t.FreeBytes), formatBytes(need+need/8))
		}
	}
	return nil
}

// prepareCold finds out whether the kernel's caches can be dropped.
func (r *run) prepareCold() {
	cold := slices.ContainsFunc(r.groups, func(g group) bool {
		return slices.ContainsFunc(g.steps, func(s step) bool { return s.cold })
	})
	switch {
	case !cold:
	case r.opt.Warm:
		r.report.Notes = append(r.report.Notes, "warm, as asked: the kernel's caches were not dropped")
	default:
		if err := dropCaches(); err != nil {
			r.report.Notes = append(r.report.Notes, fmt.Sprintf("warm: the kernel's caches could not be dropped (%v); run as root for cold reads", err))
			return
		}
		r.report.CachesDropped = true
	}
}

// all runs every group with every number of workers in every round.
func (r *run) all(ctx context.Context) error {
	for i := range r.groups {
		for _, n := range r.opt.Workers {
			crew := newCrew(n, max(blockSize, r.opt.SmallSize))
			for round := range r.opt.Rounds {
				if err := r.group(ctx, &r.groups[i], crew, round); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// group runs the steps of g once on every target, in turn, and removes what
// they made.
func (r *run) group(ctx context.Context, g *group, c *crew, round int) error {
	beds := make([]*bed, len(r.roots))
	for t, root := range r.roots {
		b := newBed(&r.opt, filepath.Join(root, g.name), len(c.workers), r.plan)
		if err := os.Mkdir(b.dir, 0o755); err != nil {
			return err
		}
		if err := g.setup(b); err != nil {
			return err
		}
		beds[t] = b
	}
	for i := range g.steps {
		for t, b := range beds {
			if err := r.one(ctx, &g.steps[i], b, c, t, round); err != nil {
				return err
			}
		}
	}
	for _, b := range beds {
		if err := os.RemoveAll(b.dir); err != nil {
			return err
		}
	}
	return nil
}

// one runs a step on one target.
func (r *run) one(ctx context.Context, s *step, b *bed, c *crew, t, round int) error {
	r.step++
	if s.prep != nil {
		if err := s.prep(b); err != nil {
			return err
		}
	}
	settle() // what earlier tests left unwritten is not this one's burden
	if s.cold && r.report.CachesDropped {
		if err := dropCaches(); err != nil {
			return fmt.Errorf("dropping the kernel's caches: %w", err)
		}
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	b.next.Store(0)
	p := Progress{Test: s.name, Target: r.report.Targets[t].Name, Workers: len(c.workers), Round: round + 1, Step: r.step, Steps: r.steps}
	var report func(int64, time.Duration)
	if r.opt.Progress != nil {
		report = func(ops int64, elapsed time.Duration) {
			p.Ops, p.Elapsed = ops, elapsed
			r.opt.Progress(p)
		}
		report(0, 0)
	}
	out := c.run(ctx, r.opt.Duration, s.job(b, len(c.workers)), report)
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	r.report.Errors += out.errs
	key := resultKey{test: s.name, workers: len(c.workers), target: t}
	switch {
	case r.opt.wants(s.name):
		r.rounds[key] = append(r.rounds[key], out)
	case out.errs > 0:
		return fmt.Errorf("%s, which other tests build on: %d operations failed: %s", s.name, out.errs, out.samples[0])
	}
	return nil
}

// job joins the parts of a step into what a worker does.
func (s *step) job(b *bed, workers int) func(*worker) {
	begun := make(chan struct{})
	if s.first == nil {
		close(begun)
	}
	var working sync.WaitGroup
	working.Add(workers)
	return func(w *worker) {
		if s.first != nil && w.id == 0 {
			s.first(b, w)
			close(begun)
		}
		<-begun
		s.work(b, w)
		working.Done()
		if s.last != nil && w.id == 0 {
			working.Wait()
			s.last(b, w)
		}
	}
}

// finish turns the outcomes into the report, in the order of the tests.
func (r *run) finish(complete bool) {
	rep := r.report
	rep.Complete = complete
	rep.Seconds = time.Since(rep.Started).Seconds()
	for i := range r.groups {
		for j := range r.groups[i].steps {
			s := &r.groups[i].steps[j]
			for _, n := range r.opt.Workers {
				for t := range r.report.Targets {
					rounds := r.rounds[resultKey{test: s.name, workers: n, target: t}]
					if len(rounds) == 0 {
						continue
					}
					res := newResult(s, &r.opt, rep.Targets[t].Name, n, rounds)
					res.Cold = s.cold && rep.CachesDropped
					rep.Results = append(rep.Results, res)
				}
			}
		}
	}
	if len(rep.Targets) == 2 {
		rep.Comparisons = compare(rep.Results)
	}
}
