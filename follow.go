package koinon

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"github.com/koinon/koinon/internal/proc"
	"github.com/koinon/koinon/internal/proc/procpb"
	"github.com/koinon/koinon/internal/sys"
)

// Chunk is a piece of what a process has written.
type Chunk struct {
	Process string // its name
	Index   int
	Rank    int
	Stderr  bool
	Data    []byte // valid during the call
	End     bool   // the process has ended: nothing follows
}

// FollowOptions say what Follow does with a job's news. All may be nil.
type FollowOptions struct {
	// Output gets what the processes write, from their beginnings on, of each
	// process in order. It is called by one goroutine at a time. An error ends
	// Follow.
	Output func(Chunk) error
	// Changed gets the job, or that Part of it, whenever the job has changed. It
	// must not block.
	Changed func(Job)
	// Stdin is what the process of a job submitted with Stdin reads. Follow
	// does not wait for a read that is under way when the process has ended.
	Stdin io.Reader
}

// Follow follows what name means, a job, a task or a process, to its end, and
// returns the job as it is then: of a task or a process, that Part of it. When
// ctx ends the job goes on.
func (p *Procs) Follow(ctx context.Context, name string, opt FollowOptions) (*Job, error) {
	n, err := proc.ParseName(name)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	f := &follow{
		p: p, opt: opt, name: n, cancel: cancel, calls: make(chan struct{}, outputCalls),
		tasks: map[uint32]*procpb.Task{}, seen: map[try]bool{}, news: make(chan struct{}),
	}
	job, err := f.run(ctx)
	if err != nil {
		cancel(err)
	}
	f.work.Wait()
	if cause := context.Cause(ctx); cause != nil {
		return nil, cause // what came first
	}
	return job, nil
}

// Wait waits for the end of what name means, a job, a task or a process, and
// returns it as Follow does. A process has ended when no further try of its task
// can take its place. What has ended wrote what every mount sees from then on.
func (p *Procs) Wait(ctx context.Context, name string) (*Job, error) {
	return p.Follow(ctx, name, FollowOptions{})
}

// outputCalls bounds the requests for output that wait at the nodes at once;
// further ones take turns. It is half of what a node runs of one connection.
const outputCalls = 128

// follow is one run of Follow.
type follow struct {
	p      *Procs
	opt    FollowOptions
	name   proc.Name
	spec   *procpb.Spec
	cancel context.CancelCauseFunc
	calls  chan struct{} // a token for each call
	work   sync.WaitGroup

	mu      sync.Mutex
	tasks   map[uint32]*procpb.Task // newest rows
	seen    map[try]bool            // whose output is being followed, or was heard of
	heard   []heard                 // what is to be passed on by tellHeard
	telling bool                    // tellHeard runs
	news    chan struct{}           // closed and replaced when tasks change

	out sync.Mutex // holds Output to one call at a time
}

// try is a process of one try of a task.
type try struct {
	index, rank, epoch uint32
	node               sys.NodeID
}

// Waits at the leader and at nodes.
const (
	newsWait   = 5 * time.Second
	outputWait = 5 * time.Second
)

// settle is for how long news may be gathered: many processes end before. Then their output comes with the news, and no node
// is asked for it.
const settle = 20 * time.Millisecond

// run learns the news until what is followed has ended. The output may still
// be under way.
func (f *follow) run(ctx context.Context) (*Job, error) {
	version := uint64(0)
	if f.name.IsJob() { // else of every task is to be told
		f.spec = f.p.submitted(f.name.Job)
	}
	if f.spec != nil {
		version = proc.FirstVersion // what there is to know of it at first is known
		if err := f.check(); err != nil {
			return nil, err
		}
	}
	for {
		req := &procpb.WaitRequest{Job: f.name.Job, Version: version, WaitNs: int64(newsWait), Tasks: true}
		if version != 0 && (f.opt.Stdin == nil || !f.spec.Stdin) { // else a process may be waiting for input
			req.SettleNs = int64(settle)
		}
		r, err := f.p.c.Wait(ctx, req)
		if err != nil {
			return nil, err
		}
		if r.Spec != nil {
			f.spec = r.Spec
			if err := f.check(); err != nil {
				return nil, err
			}
		}
		if f.spec == nil {
			return nil, sys.E(sys.Op("koinon.Follow"), sys.Corrupt, "the leader tells nothing of the job")
		}
		f.learn(ctx, r.Tasks, r.Ended)
		job := f.job(r.Job)
		if f.opt.Changed != nil && r.Job.Version != version {
			f.opt.Changed(job)
		}
		version = r.Job.Version
		switch {
		case proc.Over(r.Job.State):
			return &job, nil
		case job.State.Over(): // a part: who is told of its end is to see what it wrote
			_, err := f.p.c.Wait(ctx, &procpb.WaitRequest{Job: f.name.Job, Version: version, Seen: true})
			return &job, err
		}
	}
}

// check refuses a name that the job has not: see checkName.
func (f *follow) check() error { return checkName(f.name, f.spec) }

func checkName(name proc.Name, spec *procpb.Spec) error {
	refuse := func(text string) error {
		return sys.E(sys.Op("koinon.Follow"), sys.NotExist, sys.Subject(name.String()), text)
	}
	first, last := int(spec.First), int(spec.Last)
	switch {
	case name.Index >= 0 && !spec.Array:
		return refuse("the job is no array")
	case name.Index >= 0 && (name.Index < first || name.Index > last):
		return refuse("the job has no such index")
	case name.Rank >= int(spec.Size):
		return refuse("the job has no such rank")
	}
	return nil
}

// job is what is followed, as it was last heard of.
func (f *follow) job(row *procpb.Job) Job {
	if f.name.IsJob() {
		return specified(row, f.spec)
	}
	first, last := uint64(f.spec.First), uint64(f.spec.Last)
	if f.name.Index >= 0 {
		first, last = uint64(f.name.Index), uint64(f.name.Index)
	}
	var tasks []*procpb.Task
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := first; i <= last; i++ {
		if t := f.tasks[uint32(i)]; t != nil {
			tasks = append(tasks, t)
		}
	}
	job := specified(proc.Part(row, f.spec, tasks, f.name.Rank), f.spec)
	job.Part = f.name.String()
	return job
}

// learn takes in changed tasks and processes that have ended, and follows what has begun to run.
func (f *follow) learn(ctx context.Context, tasks []*procpb.Task, ended []*procpb.Report) {
	if len(tasks) == 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, t := range tasks {
		f.tasks[t.Index] = t
	}
	f.hear(ctx, ended) // first: these need not be followed
	for _, t := range tasks {
		if f.name.Index >= 0 && t.Index != uint32(f.name.Index) {
			continue
		}
		for rank, p := range t.Procs {
			if f.name.Rank >= 0 && rank != f.name.Rank {
				continue
			}
			y := try{index: t.Index, rank: uint32(rank), epoch: t.Epoch, node: sys.NodeID(p.Node)}
			if f.seen[y] {
				continue
			}
			f.seen[y] = true
			f.start(ctx, y)
		}
	}
	close(f.news)
	f.news = make(chan struct{})
}

// hear takes in processes that have ended: what those wrote that are not followed is passed on where it was told, and their nodes
// are asked for it else. The caller holds mu, and has taken in their tasks.
func (f *follow) hear(ctx context.Context, ended []*procpb.Report) {
	if f.opt.Output == nil {
		return
	}
	for _, r := range ended {
		y := try{index: r.Index, rank: r.Rank, epoch: r.Epoch, node: sys.NodeID(r.Node)}
		if f.name.Index >= 0 && y.index != uint32(f.name.Index) || f.name.Rank >= 0 && y.rank != uint32(f.name.Rank) || f.seen[y] {
			continue
		}
		f.seen[y] = true
		if r.Recorded {
			f.startOutput(ctx, y)
			continue
		}
		f.heard = append(f.heard, heard{y, &procpb.OutputReply{Stdout: r.Stdout, Stderr: r.Stderr, Final: true}})
	}
	if len(f.heard) > 0 && !f.telling {
		f.telling = true
		f.work.Go(f.tellHeard)
	}
}

// heard is all that a process wrote.
type heard struct {
	y   try
	all *procpb.OutputReply
}

// tellHeard passes on what was heard, in its order, while the news go on.
func (f *follow) tellHeard() {
	for {
		f.mu.Lock()
		all := f.heard
		f.heard = nil
		f.telling = len(all) > 0
		f.mu.Unlock()
		if len(all) == 0 {
			return
		}
		for _, h := range all {
			if err := f.tell(h.y, &procpb.OutputRequest{}, h.all); err != nil {
				f.cancel(err)
				return
			}
		}
	}
}

// startOutput follows what a process writes.
func (f *follow) startOutput(ctx context.Context, y try) {
	reach, stop := context.WithCancel(ctx)
	f.work.Go(func() { f.awaitEnd(reach, y, endPatience); stop() })
	f.work.Go(func() {
		defer stop()
		if err := f.output(ctx, reach, y); err != nil {
			f.cancel(err)
		}
	})
}

// start follows a process.
func (f *follow) start(ctx context.Context, y try) {
	if f.opt.Output != nil {
		f.startOutput(ctx, y)
	}
	if f.opt.Stdin != nil && f.spec.Stdin {
		in := f.opt.Stdin
		f.opt.Stdin = nil // a further try finds it read
		feed, stop := context.WithCancel(ctx)
		f.work.Go(func() { f.awaitEnd(feed, y, 0); stop() })
		f.work.Go(func() {
			defer stop()
			if err := f.feed(feed, y, in); err != nil && feed.Err() == nil {
				f.cancel(err)
			}
		})
	}
}

// endPatience is for how long a node is asked for the output of a process that
// has ended: it may have ended with the node.
const endPatience = 2 * time.Second

// state is a process as it was last heard of: whether its try has ended, and
// whether a later one has taken its place.
func (f *follow) state(y try) (ended, replaced bool, news <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	t := f.tasks[y.index]
	replaced = t.Epoch > y.epoch
	ended = replaced || proc.Over(t.State) || int(y.rank) < len(t.Procs) && proc.Over(t.Procs[y.rank].State)
	return ended, replaced, f.news
}

// awaitEnd returns when the process has ended so long ago.
func (f *follow) awaitEnd(ctx context.Context, y try, since time.Duration) {
	for {
		ended, _, news := f.state(y)
		if ended {
			select {
			case <-time.After(since):
			case <-ctx.Done():
			}
			return
		}
		select {
		case <-news:
		case <-ctx.Done():
			return
		}
	}
}

// output passes on what a process writes: from its node as long as that has
// it and reach lasts, then from the files in the tree.
func (f *follow) output(ctx, reach context.Context, y try) error {
	req := &procpb.OutputRequest{Job: f.name.Job, Index: y.index, Rank: y.rank, Epoch: y.epoch, WaitNs: int64(outputWait)}
	for pause := pauseLeast; ; pause = min(2*pause, pauseMost) {
		ended, replaced, news := f.state(y) // before asking: what was written before the end is there then
		r, err := f.ask(reach, y.node, req)
		switch {
		case ctx.Err() != nil:
			return nil // whoever ended it knows why
		case err == nil && !r.Gone:
			if err := f.tell(y, req, r); err != nil || r.Final {
				return err
			}
			pause = pauseLeast
			continue
		case err != nil && !away(err) && reach.Err() == nil:
			return err
		case replaced:
			return f.end(y) // the files are those of the later try
		case ended:
			return f.rest(ctx, y, req)
		}
		// Its node does not know of it yet, or cannot be reached.
		select {
		case <-news:
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

// Pauses before a node is asked again.
const (
	pauseLeast = 2 * time.Millisecond
	pauseMost  = time.Second
)

// away says that a node could not be asked.
func away(err error) bool {
	switch sys.KindOf(err) {
	case sys.Unavailable, sys.Interrupted, sys.NotExist:
		return true
	}
	return errors.Is(err, context.DeadlineExceeded)
}

// ask is one request for output, in its turn.
func (f *follow) ask(ctx context.Context, node sys.NodeID, req *procpb.OutputRequest) (*procpb.OutputReply, error) {
	select {
	case f.calls <- struct{}{}:
		defer func() { <-f.calls }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return f.p.c.Output(ctx, node, req)
}

// tell passes on an answer, and moves the request behind it.
func (f *follow) tell(y try, req *procpb.OutputRequest, r *procpb.OutputReply) error {
	f.out.Lock()
	defer f.out.Unlock()
	c := f.chunk(y)
	if len(r.Stdout) > 0 {
		c.Data = r.Stdout
		if err := f.opt.Output(c); err != nil {
			return err
		}
		req.Stdout += int64(len(r.Stdout))
	}
	if len(r.Stderr) > 0 {
		c.Data, c.Stderr = r.Stderr, true
		if err := f.opt.Output(c); err != nil {
			return err
		}
		req.Stderr += int64(len(r.Stderr))
	}
	if r.Final {
		return f.opt.Output(endOf(c))
	}
	return nil
}

func (f *follow) chunk(y try) Chunk {
	return Chunk{Process: proc.ProcessName(f.spec, f.name.Job, y.index, y.rank).String(), Index: int(y.index), Rank: int(y.rank)}
}

func endOf(c Chunk) Chunk {
	c.Data, c.Stderr, c.End = nil, false, true
	return c
}

// end says that nothing follows.
func (f *follow) end(y try) error {
	f.out.Lock()
	defer f.out.Unlock()
	return f.opt.Output(endOf(f.chunk(y)))
}

// rest passes on what the files of a process hold beyond what has been told.
func (f *follow) rest(ctx context.Context, y try, req *procpb.OutputRequest) error {
	dir := proc.FilesDir(proc.ProcessName(f.spec, f.name.Job, y.index, y.rank))
	for _, s := range []struct {
		file   string
		from   int64
		stderr bool
	}{{"stdout", req.Stdout, false}, {"stderr", req.Stderr, true}} {
		c := f.chunk(y)
		c.Stderr = s.stderr
		err := f.p.file(ctx, dir+"/"+s.file, s.from, func(data []byte) error {
			f.out.Lock()
			defer f.out.Unlock()
			c.Data = data
			return f.opt.Output(c)
		})
		if err != nil {
			return err
		}
	}
	return f.end(y)
}
