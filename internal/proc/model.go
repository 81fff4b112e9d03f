package proc

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/koinon/koinon/commit"
	"github.com/koinon/koinon/internal/proc/procpb"
	"github.com/koinon/koinon/internal/proc/sched"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
)

// model is what a leader keeps in memory of the jobs that are not over, the
// nodes, and what it is about to start. The rows are the truth; this follows
// them by what the machine publishes. Not safe for concurrent use.
type model struct {
	jobs     map[uint64]*jobModel
	order    []uint64             // the jobs' IDs, ascending
	live     map[uint64]*jobModel // those with live tasks
	nodes    map[uint64]*nodeModel
	attempts map[commit.Tx]*attempt
	ledger   sched.Ledger
	dirty    bool // something has changed since the last plan
}

type jobModel struct {
	row  *procpb.Job
	spec *procpb.Spec
	// submit is of a job that is in no row yet: its start is to make it. tried says that it has not.
	submit *procpb.Submit
	tried  bool
	tasks  map[uint32]*taskModel
	live   map[uint32]*taskModel // those that run, or are about to
	next   uint32                // no task below waits in the queue
	stops  int                   // Kills under way: nothing of it is started
	came   int64                 // when it was submitted, by the clock of plans
	nodes  []uint64              // where it runs or ran, ascending
}

type taskModel struct {
	row     *procpb.Task
	gang    sched.Gang // what refusals have left
	attempt *attempt   // to start it
	why     string     // why it waits
	known   time.Duration
	told    time.Duration // when its nodes were last told to end it
	toldSig uint32        // and by which signal
	timed   bool          // its timeout has been proposed
	tx      commit.Tx     // by which it runs; zero: that of an earlier leader
}

// attempt is a try to start a task.
type attempt struct {
	job   *jobModel
	task  *taskModel
	nodes []uint64 // by rank
	why   string
	ino   uint64 // of the private directory of outputs
	tx    commit.Tx
	done  chan struct{} // closed when it is decided
}

type nodeModel struct {
	row       *procpb.Node
	labels    map[string]string // the row's
	heard     time.Duration     // Boot time of the last answer to its heartbeat; 0: never
	used      *procpb.Resources
	processes int
	silent    bool               // it could not be reached since it was heard
	losing    bool               // it is being declared lost
	missing   map[rankKey]uint64 // what its heartbeats do not list, and should; the marks that were given then
}

// rankKey is a process of one try of a task.
type rankKey struct {
	job                uint64
	index, rank, epoch uint32
}

func newModel() *model {
	return &model{jobs: map[uint64]*jobModel{}, live: map[uint64]*jobModel{}, nodes: map[uint64]*nodeModel{}, attempts: map[commit.Tx]*attempt{}, dirty: true}
}

// loadModel reads the rows of what is not over.
func loadModel(r rsm.Reader, now time.Duration) (*model, error) {
	m := newModel()
	var ids []uint64
	if err := r.Scan([]byte{rowActive}, []byte{rowActive + 1}, func(k, _ []byte) bool {
		ids = append(ids, numbers(k)[0])
		return true
	}); err != nil {
		return nil, err
	}
	for _, id := range ids {
		j := &procpb.Job{}
		if ok, err := load(r, key(rowJob, id), j); err != nil || !ok {
			return nil, cmp.Or(err, sys.E(sys.Op("proc.load"), sys.Corrupt, fmt.Sprintf("job %d is active and has no row", id)))
		}
		spec, err := loadSpec(r, id)
		if err != nil {
			return nil, err
		}
		m.addJob(j, spec)
		if err := loadTasks(r, id, 0, func(t *procpb.Task) bool {
			m.setTask(t, now)
			return true
		}); err != nil {
			return nil, err
		}
	}
	return m, r.Scan([]byte{rowNode}, []byte{rowNode + 1}, func(_, v []byte) bool {
		n := &procpb.Node{}
		decode(v, n)
		m.setNode(n)
		return true
	})
}

func (m *model) addJob(j *procpb.Job, spec *procpb.Spec) {
	m.jobs[j.Id] = &jobModel{row: j, spec: spec, tasks: map[uint32]*taskModel{}, live: map[uint32]*taskModel{}, next: spec.GetFirst()}
	at, _ := slices.BinarySearch(m.order, j.Id)
	m.order = slices.Insert(m.order, at, j.Id)
}

// follow takes in what a command has changed.
func (m *model) follow(d *delta, now time.Duration) {
	for _, j := range d.jobs {
		jm := m.jobs[j.Id]
		if jm != nil && jm.submit != nil && !bytes.Equal(jm.submit.Request, j.Request) {
			m.drop(j.Id) // another one has the number that was foreseen for it
			jm = nil
		}
		if jm != nil {
			jm.row, jm.submit = j, nil
		} else if spec := d.specs[j.Id]; spec != nil && !Over(j.State) {
			m.addJob(j, spec)
		}
	}
	for _, t := range d.tasks {
		m.setTask(t, now)
	}
	for _, j := range d.jobs {
		if Over(j.State) {
			m.drop(j.Id)
		}
	}
	for _, n := range d.nodes {
		m.setNode(n)
	}
	m.dirty = true
}

func (m *model) drop(id uint64) {
	if m.jobs[id] == nil {
		return
	}
	delete(m.jobs, id)
	delete(m.live, id)
	if at, found := slices.BinarySearch(m.order, id); found {
		m.order = slices.Delete(m.order, at, at+1)
	}
}

func (m *model) setTask(t *procpb.Task, now time.Duration) {
	j := m.jobs[t.Job]
	if j == nil {
		return
	}
	tm := j.tasks[t.Index]
	if tm == nil {
		tm = &taskModel{}
		j.tasks[t.Index] = tm
	}
	was := tm.row
	tm.row = t
	for _, p := range t.Procs {
		if at, found := slices.BinarySearch(j.nodes, p.Node); !found {
			j.nodes = slices.Insert(j.nodes, at, p.Node)
		}
	}
	switch {
	case t.State == procpb.State_QUEUED:
		j.next = min(j.next, t.Index)
		if was != nil && was.State == procpb.State_RUNNING {
			m.charge(j, was, now-tm.known)
		}
	case t.State == procpb.State_RUNNING && (was == nil || was.Epoch != t.Epoch || was.State != procpb.State_RUNNING):
		tm.known, tm.told, tm.timed, tm.why, tm.tx = now, 0, false, "", commit.Tx{}
		tm.gang = sched.Gang{}
	case Over(t.State):
		if was != nil && was.State == procpb.State_RUNNING {
			m.charge(j, was, now-tm.known)
		}
		delete(j.tasks, t.Index)
	}
	m.relive(j, tm)
}

// relive notes whether a task runs or is about to, or does not any more: what looks after those need not look at all the
// tasks of all the jobs.
func (m *model) relive(j *jobModel, t *taskModel) {
	switch {
	case m.jobs[j.row.Id] != j: // dropped, and perhaps another one by now
	case t.row.State == procpb.State_RUNNING || t.attempt != nil:
		j.live[t.row.Index] = t
		m.live[j.row.Id] = j
	default:
		delete(j.live, t.row.Index)
		if len(j.live) == 0 {
			delete(m.live, j.row.Id)
		}
	}
}

// foresee adds a job as it will be when it has been submitted, for one attempt to start it.
func (m *model) foresee(r *procpb.Submit, now int64) *jobModel {
	m.addJob(&procpb.Job{Id: r.Job, SubmittedNs: now, Tasks: 1, Queued: 1, State: procpb.State_QUEUED}, r.Spec)
	m.setTask(&procpb.Task{Job: r.Job, Index: r.Spec.First, State: procpb.State_QUEUED}, 0)
	m.dirty = true
	j := m.jobs[r.Job]
	j.submit = r
	return j
}

// try begins an attempt, and settle ends it.
func (m *model) try(a *attempt) {
	a.task.attempt = a
	m.relive(a.job, a.task)
}

func (m *model) settle(a *attempt) {
	a.task.attempt = nil
	delete(m.attempts, a.tx)
	m.relive(a.job, a.task)
	a.job.tried = true
}

// unforesee drops a job that has not come into being.
func (m *model) unforesee(j *jobModel) {
	if j.submit != nil && m.jobs[j.row.Id] == j {
		m.drop(j.row.Id)
		m.dirty = true // the last plan was of a queue with this job in it
	}
}

// charge notes what a user has had.
func (m *model) charge(j *jobModel, t *procpb.Task, lasted time.Duration) {
	var total sched.Resources
	for _, n := range m.nodes {
		total = total.Plus(resources(n.row.Capacity))
	}
	share := sched.Share(total, resources(j.spec.Each).Times(int64(len(t.Procs))))
	m.ledger.Charge(m.ledger.At, userOf(j.spec), share, sched.Time(max(lasted, 0)))
}

func (m *model) setNode(n *procpb.Node) {
	nm := m.nodes[n.Id]
	if nm == nil {
		nm = &nodeModel{}
		m.nodes[n.Id] = nm
	}
	if nm.row.GetFence() != n.Fence {
		nm.losing, nm.used, nm.processes, nm.missing = false, nil, 0, nil
	}
	nm.row, nm.labels = n, LabelMap(n.Labels)
}

// deadAfter is for how long a node may be silent until nothing more is asked of it.
const deadAfter = 3 * Beat

// alive says that a node may be asked to start something.
func (n *nodeModel) alive(now time.Duration) bool {
	return n.heard > 0 && now-n.heard < deadAfter && !n.silent && !n.row.Lost && !n.losing
}

func resources(r *procpb.Resources) sched.Resources {
	return sched.Resources{CPU: r.GetCpuMilli(), Memory: r.GetMemory()}
}

func userOf(s *procpb.Spec) string {
	if s.User.GetName() != "" {
		return s.User.Name
	}
	return fmt.Sprint(s.User.GetUid())
}

// reserved is what of each node is promised: to what runs, and to what is about
// to.
func (m *model) reserved() map[uint64]sched.Resources {
	out := map[uint64]sched.Resources{}
	for _, j := range m.live {
		each := resources(j.spec.Each)
		for _, t := range j.live {
			switch {
			case t.row.State == procpb.State_RUNNING:
				for _, p := range t.row.Procs {
					if !Over(p.State) {
						out[p.Node] = out[p.Node].Plus(each)
					}
				}
			case t.attempt != nil:
				for _, n := range t.attempt.nodes {
					out[n] = out[n].Plus(each)
				}
			}
		}
	}
	return out
}

// starting says whether a task of the job is about to start.
func (j *jobModel) starting() bool {
	for _, t := range j.live {
		if t.attempt != nil {
			return true
		}
	}
	return false
}

// The bounds of a plan.
const (
	gangsOfJobMax = 128 // tasks of a job are alike: those behind wait as these do
	gangsMax      = 4000
)

// snapshot is what a plan is made from, and which task each gang is.
//
// waiting is how many tasks are in the queue, also of those that the plan leaves out.
func (m *model) snapshot(now time.Duration, wall int64) (s *sched.Snapshot, who []*attempt, waiting int) {
	m.ledger.Advance(sched.Time(wall))
	s = &sched.Snapshot{Now: sched.Time(wall), Ledger: &m.ledger, Nodes: m.schedNodes(now)}
	for _, id := range m.order {
		j := m.jobs[id]
		m.runningOf(s, j)
		if j.row.Queued == 0 || j.stops > 0 || j.submit != nil && j.tried {
			continue
		}
		if waiting += j.queued(); len(who) >= gangsMax {
			continue
		}
		if j.came == 0 {
			j.came = min(j.row.SubmittedNs, wall)
		}
		for _, t := range j.waiting() {
			if len(who) == gangsMax {
				break
			}
			who = append(who, &attempt{job: j, task: t})
			s.Queue = append(s.Queue, gangOf(j, t, sched.GangID(len(who))))
		}
	}
	return s, who, waiting
}

// queued is how many of the job's tasks wait and are not about to start.
func (j *jobModel) queued() int {
	n := int(j.row.Queued)
	for _, t := range j.live {
		if t.attempt != nil && t.row.State == procpb.State_QUEUED {
			n--
		}
	}
	return n
}

// schedNodes are the nodes that may be asked.
func (m *model) schedNodes(now time.Duration) []sched.Node {
	var out []sched.Node
	used := m.reserved()
	for id, n := range m.nodes {
		if n.alive(now) {
			out = append(out, n.sched(used[id]))
		}
	}
	slices.SortFunc(out, func(a, b sched.Node) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

func (n *nodeModel) sched(used sched.Resources) sched.Node {
	id := sys.NodeID(n.row.Id)
	return sched.Node{ID: id, Name: id.String(), Capacity: resources(n.row.Capacity), Used: used, Labels: n.labels, Draining: n.row.Draining}
}

// runningOf adds what is known of the ends of a job's tasks.
func (m *model) runningOf(s *sched.Snapshot, j *jobModel) {
	if j.spec.TimeoutNs == 0 {
		return
	}
	for _, t := range j.live {
		if t.row.State != procpb.State_RUNNING {
			continue
		}
		for _, p := range t.row.Procs {
			if !Over(p.State) {
				s.Running = append(s.Running, sched.Running{Node: sys.NodeID(p.Node), Uses: resources(j.spec.Each), Until: sched.Time(t.row.StartedNs + j.spec.TimeoutNs)})
			}
		}
	}
}

// waiting are the first of the job's tasks that could be started now.
func (j *jobModel) waiting() []*taskModel {
	most := gangsOfJobMax
	if j.spec.AtOnce > 0 {
		busy := int(j.row.Running)
		for _, t := range j.live {
			if t.attempt != nil && t.row.State == procpb.State_QUEUED {
				busy++
			}
		}
		most = min(most, int(j.spec.AtOnce)-busy)
	}
	var out []*taskModel
	first := true
	for i := j.next; i-j.spec.First < j.row.Tasks && len(out) < most; i++ {
		t := j.tasks[i]
		if t == nil || t.row.State != procpb.State_QUEUED {
			continue
		}
		if first {
			j.next, first = i, false
		}
		if t.attempt == nil {
			out = append(out, t)
		}
	}
	return out
}

// gangOf is a task as the scheduler sees it.
func gangOf(j *jobModel, t *taskModel, id sched.GangID) sched.Gang {
	s := j.spec
	g := t.gang
	g.ID, g.User, g.Size, g.Each = id, userOf(s), int(s.Size), resources(s.Each)
	g.Limit, g.Submitted = sched.Time(s.TimeoutNs), sched.Time(j.came)
	for _, l := range s.Want {
		g.Want = append(g.Want, sched.Label{Key: l.Key, Value: l.Value})
	}
	for _, n := range s.On {
		g.On = append(g.On, sys.NodeID(n))
	}
	near := s.Near
	if int(t.row.Index) < len(s.NearItems) {
		near = s.NearItems[t.row.Index].Bytes
	}
	for _, h := range near {
		if g.Near == nil {
			g.Near = map[sys.NodeID]int64{}
		}
		g.Near[sys.NodeID(h.Node)] = h.Bytes
	}
	if s.Pack {
		g.Policy = sched.Pack
	}
	return g
}

// broken says that a gang cannot go on: a process of it is lost, or could not be
// started, while others live.
func broken(t *procpb.Task) bool {
	bad, alive := false, false
	for _, p := range t.Procs {
		switch {
		case !Over(p.State):
			alive = true
		case p.State == procpb.State_LOST || p.StartedNs == 0 && p.ExitCode >= ExitTrouble:
			bad = true
		}
	}
	return bad && alive
}
