package proc

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/koinon/koinon/internal/cluster"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/proc/procpb"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/wire"
)

func (s *Server) serveList(ctx context.Context, req *wire.Request) (wire.Response, error) {
	var r procpb.ListRequest
	if err := parse("proc.List", req.Header, &r); err != nil {
		return wire.Response{}, err
	}
	if !r.All {
		l, err := s.leader(ctx, "proc.List")
		if err != nil {
			return cluster.LeaderHint(err)
		}
		reply := l.model.list(&r)
		s.mu.Unlock()
		return respond(reply)
	}
	reply := &procpb.ListReply{}
	if err := s.group.Read(ctx, rsm.NSProc, func(v rsm.Reader) (err error) {
		reply, err = list(v, &r)
		return err
	}); err != nil {
		return cluster.LeaderHint(err)
	}
	s.mu.Lock()
	if l := s.lead; l != nil {
		s.follow(l, s.opt.Clock.Boot())
		for i, info := range reply.Jobs {
			if j := l.model.jobs[info.Job.Id]; j != nil && j.submit == nil {
				reply.Jobs[i] = j.info()
			}
		}
	}
	s.mu.Unlock()
	return respond(reply)
}

// page is a listing while it is made.
type page struct {
	reply procpb.ListReply
	limit int
	size  int
	user  string
}

func newPage(r *procpb.ListRequest) *page {
	p := &page{limit: int(r.Limit), user: r.User}
	if p.limit == 0 {
		p.limit = listDefault
	}
	p.limit = min(p.limit, listMax)
	return p
}

// wants says whether a user's jobs are listed.
func (p *page) wants(user string) bool { return p.user == "" || p.user == user }

// add adds a job. It returns false when the page is full.
func (p *page) add(info *procpb.JobInfo) bool {
	p.size += pb.Size(info)
	if len(p.reply.Jobs) == p.limit || p.size > listBytes && len(p.reply.Jobs) > 0 {
		p.reply.More = true
		return false
	}
	p.reply.Jobs = append(p.reply.Jobs, info)
	return true
}

// list lists jobs that are not over, the newest first. What it returns shares rows with the model.
func (m *model) list(r *procpb.ListRequest) *procpb.ListReply {
	p := newPage(r)
	end := len(m.order)
	if r.Below != 0 {
		end, _ = slices.BinarySearch(m.order, r.Below)
	}
	for _, id := range slices.Backward(m.order[:end]) {
		if j := m.jobs[id]; j.submit == nil && p.wants(userOf(j.spec)) && !p.add(j.info()) {
			break
		}
	}
	return &p.reply
}

// info is a job for a listing.
func (j *jobModel) info() *procpb.JobInfo {
	i := &procpb.JobInfo{Job: j.row, Name: j.spec.Name, Argv: j.spec.Argv, User: userOf(j.spec), Size: j.spec.Size, Nodes: slices.Clone(j.nodes), Why: j.waits()}
	if j.row.Running == 0 && j.starting() {
		i.Job = j.row.CloneVT()
		i.Job.State = procpb.State_RESERVING
	}
	return i
}

// waits is why the first of a job's tasks that waits does so.
func (j *jobModel) waits() string {
	if len(j.row.BlockedBy) > 0 {
		return fmt.Sprintf("waits for job %d", j.row.BlockedBy[0])
	}
	if j.row.Queued == 0 {
		return ""
	}
	for _, t := range j.waiting() {
		return t.why
	}
	return ""
}

const (
	listDefault = 10_000
	listBytes   = 4 << 20 // of one page, about: commands may be long
	listMax     = 20_000
	listWindow  = 256 // job IDs looked at in one go
)

// list reads all jobs, the newest first. A window of them is read in one go: rows side by side take a third of the time of
// each by itself.
func list(v rsm.Reader, r *procpb.ListRequest) (*procpb.ListReply, error) {
	p := newPage(r)
	last, err := lastJob(v)
	if err != nil {
		return nil, err
	}
	below := last + 1
	if r.Below != 0 {
		below = min(below, r.Below)
	}
	for below > 1 {
		from := max(below, listWindow+1) - listWindow
		var jobs []*procpb.Job
		if err := v.Scan(key(rowJob, from), key(rowJob, below), func(_, row []byte) bool {
			j := &procpb.Job{}
			decode(row, j)
			jobs = append(jobs, j)
			return true
		}); err != nil {
			return nil, err
		}
		specs := make(map[uint64]*procpb.Spec, len(jobs))
		if err := v.Scan(key(rowSpec, from), key(rowSpec, below), func(k, row []byte) bool {
			spec := &procpb.Spec{}
			decode(row, spec)
			specs[numbers(k)[0]] = spec
			return true
		}); err != nil {
			return nil, err
		}
		for _, j := range slices.Backward(jobs) {
			spec := cmp.Or(specs[j.Id], &procpb.Spec{})
			if !p.wants(userOf(spec)) {
				continue
			}
			info, err := infoOf(v, j, spec)
			if err != nil {
				return nil, err
			}
			if !p.add(info) {
				return &p.reply, nil
			}
		}
		below = from
	}
	return &p.reply, nil
}

// infoOf is a job for a listing.
func infoOf(v rsm.Reader, j *procpb.Job, spec *procpb.Spec) (*procpb.JobInfo, error) {
	info := &procpb.JobInfo{Job: j, Name: spec.GetName(), Argv: spec.GetArgv(), User: userOf(spec), Size: spec.GetSize()}
	if j.StartedNs == 0 {
		return info, nil
	}
	looked := 0
	err := loadTasks(v, j.Id, spec.GetFirst(), func(t *procpb.Task) bool {
		for _, p := range t.Procs {
			if !slices.Contains(info.Nodes, p.Node) {
				info.Nodes = append(info.Nodes, p.Node)
			}
		}
		if info.Why == "" && Over(t.State) && t.State != procpb.State_EXITED {
			info.Why = t.Why
		}
		looked++
		return looked < 64
	})
	slices.Sort(info.Nodes)
	return info, err
}
