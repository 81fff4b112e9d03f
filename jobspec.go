package koinon

import (
	"context"
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/koinon/koinon/internal/accounts"
	"github.com/koinon/koinon/internal/proc"
	"github.com/koinon/koinon/internal/proc/procpb"
	"github.com/koinon/koinon/internal/sys"
)

// JobSpec says what to run. The zero values of all but Command are fine.
type JobSpec struct {
	Name    string   `json:"name,omitempty"` // for people
	Command []string `json:"command"`        // {} in it stands for the index or the item
	Env     []string `json:"env,omitempty"`  // NAME=VALUE; the process gets these and Koinon's own
	// Dir is the working directory, a path in the tree that goes through no
	// symbolic link, see Client.RealPath; empty is the tree's root, or / on a node
	// that does not mount it.
	Dir string `json:"dir,omitempty"`
	// CPUs and Memory, in bytes, are reserved for every process and limit it
	// where the node can enforce limits. Memory 0 is neither reserved nor
	// limited; CPUs 0 is DefaultCPUs, unless Memory is given.
	CPUs   float64 `json:"cpus"`
	Memory int64   `json:"memory"`
	// Size is how many processes each task has; they start together or not at
	// all. 0 is 1.
	Size int `json:"size"`
	// Labels are what a node must have, Nodes the only ones that will do.
	Labels map[string]string `json:"labels,omitempty"`
	Nodes  []uint64          `json:"nodes,omitempty"`
	// Near is a path in the tree: nodes that hold its bytes are preferred.
	Near string `json:"near,omitempty"`
	Pack bool   `json:"pack,omitempty"` // on few nodes, not spread
	// Timeout is after how long a task is stopped, 0 for never; Grace is the
	// time from SIGTERM to SIGKILL, 0 for 10 s.
	Timeout time.Duration `json:"timeout_ns,omitempty"`
	Grace   time.Duration `json:"grace_ns,omitempty"`
	Retries int           `json:"retries,omitempty"` // further tries of a task that fails or is lost
	Array   *IndexRange   `json:"array,omitempty"`   // a task for each index
	Items   []Item        `json:"items,omitempty"`   // a task for each item, instead
	AtOnce  int           `json:"at_once,omitempty"` // tasks that may run at the same time, 0 for all
	After   []Dependency  `json:"after,omitempty"`
	// Out is where the outputs appear when a task exits with 0, a path as Dir is;
	// {} in it as in Command. The process finds a private directory to write them
	// to in KOINON_OUT.
	Out   string `json:"out,omitempty"`
	Stdin bool   `json:"stdin,omitempty"` // the single process reads what Follow is given
}

// DefaultCPUs is what a process gets when nothing is asked for: one, so that an
// array runs as many tasks at once as there are CPUs.
const DefaultCPUs = 1

// OwnVariables is how the names of variables begin that JobSpec.Env may not hold:
// only Koinon sets them.
const OwnVariables = proc.OwnVariables

// What a job may have at most.
const (
	SizeMax  = proc.SizeMax  // processes of a gang
	ArrayMax = proc.ArrayMax // tasks of an array
)

// IndexRange is the indices of an array, both ends included.
type IndexRange struct {
	First int `json:"first"`
	Last  int `json:"last"`
}

// Item is what {} stands for in one task.
type Item struct {
	Text string `json:"text"`
	// Bytes is what each node holds of what the task reads, to place it near.
	// Client.Locate tells it.
	Bytes map[uint64]int64 `json:"-"`
}

// Dependency makes a job wait for another one: for its success, or for its end
// whatever that is. When the other fails, what waits for its success is
// cancelled.
type Dependency struct {
	Job uint64 `json:"job"`
	Any bool   `json:"any,omitempty"`
}

// The least and the most that a process can be given.
const (
	cpuMin = float64(proc.CPUMin) / milli
	cpuMax = 1 << 20
)

// check refuses what the wire has no room for; proc.Check refuses the rest.
func (s *JobSpec) check() error {
	refuse := func(text string) error { return sys.E(sys.Op("koinon.Submit"), sys.Invalid, text) }
	switch {
	case s.CPUs < 0 || s.CPUs > cpuMax || math.IsNaN(s.CPUs) || s.CPUs > 0 && s.CPUs < cpuMin:
		return refuse(fmt.Sprintf("CPUs are a number from %g to %d, not %g", cpuMin, cpuMax, s.CPUs))
	case s.Size < 0 || s.Retries < 0 || s.AtOnce < 0:
		return refuse("numbers of processes, tries and tasks are not negative")
	case s.Retries > math.MaxInt32 || s.AtOnce > math.MaxInt32:
		return refuse(fmt.Sprintf("numbers of tries and tasks are at most %d, not %d", math.MaxInt32, max(s.Retries, s.AtOnce)))
	case s.Size > SizeMax:
		return refuse(fmt.Sprintf("a gang has at most %d processes, not %d", SizeMax, s.Size))
	case s.Array != nil && len(s.Items) > 0:
		return refuse("a job has indices or items, not both")
	case s.Array != nil && (s.Array.First < 0 || s.Array.Last < s.Array.First || s.Array.Last > math.MaxInt32):
		return refuse(fmt.Sprintf("%d to %d are no indices: give numbers up to %d, the lower one first", s.Array.First, s.Array.Last, math.MaxInt32))
	case len(s.Items) > ArrayMax:
		return refuse(fmt.Sprintf("%d items are more than %d, the most tasks of a job", len(s.Items), ArrayMax))
	}
	return nil
}

// spec makes what is sent of a specification.
func (p *Procs) spec(ctx context.Context, s *JobSpec) (*procpb.Spec, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	want := s.CPUs
	if want == 0 && s.Memory == 0 {
		want = DefaultCPUs
	}
	out := &procpb.Spec{
		Name: s.Name, Argv: s.Command, Env: s.Env, Dir: s.Dir, Each: &procpb.Resources{CpuMilli: int64(math.Round(want * milli)), Memory: s.Memory},
		Size: uint32(max(1, s.Size)), On: s.Nodes, Pack: s.Pack, TimeoutNs: int64(s.Timeout), GraceNs: int64(s.Grace), Retries: uint32(s.Retries),
		Out: s.Out, Stdin: s.Stdin, User: p.user(), AtOnce: uint32(s.AtOnce),
	}
	out.Want = proc.Labels(s.Labels)
	for _, d := range s.After {
		out.After = append(out.After, &procpb.After{Job: d.Job, Any: d.Any})
	}
	if s.Array != nil {
		out.Array, out.First, out.Last = true, uint32(s.Array.First), uint32(s.Array.Last)
	}
	if len(s.Items) > 0 {
		out.Array, out.Last = true, uint32(len(s.Items)-1)
		setItems(out, s.Items)
	}
	if s.Near != "" {
		tree, err := p.Tree(ctx)
		if err != nil {
			return nil, err
		}
		at, err := tree.Locate(ctx, s.Near)
		if err != nil {
			return nil, err
		}
		out.Near, out.NearPath = heldBy(at.Bytes), s.Near
		if at.Sampled {
			out.NearPath = fmt.Sprintf("%s (by its first %d files)", s.Near, at.Files)
		}
	}
	return out, nil
}

func setItems(out *procpb.Spec, items []Item) {
	known := slices.ContainsFunc(items, func(i Item) bool { return len(i.Bytes) > 0 })
	for _, i := range items {
		out.Items = append(out.Items, i.Text)
		if known {
			out.NearItems = append(out.NearItems, &procpb.NearItem{Bytes: heldBy(i.Bytes)})
		}
	}
}

// heldBy is what nodes hold, in the order of their numbers.
func heldBy(by map[uint64]int64) []*procpb.Held {
	var out []*procpb.Held
	for _, node := range slices.Sorted(maps.Keys(by)) {
		out = append(out, &procpb.Held{Node: node, Bytes: by[node]})
	}
	return out
}

// newJobSpec is what was asked for.
func newJobSpec(s *procpb.Spec) JobSpec {
	out := JobSpec{
		Name: s.GetName(), Command: s.GetArgv(), Env: s.GetEnv(), Dir: s.GetDir(), CPUs: cpus(s.GetEach()), Memory: s.GetEach().GetMemory(),
		Size: int(s.GetSize()), Nodes: s.GetOn(), Near: s.GetNearPath(), Pack: s.GetPack(), Timeout: time.Duration(s.GetTimeoutNs()),
		Grace: time.Duration(s.GetGraceNs()), Retries: int(s.GetRetries()), AtOnce: int(s.GetAtOnce()), Out: s.GetOut(), Stdin: s.GetStdin(),
	}
	if len(s.GetWant()) > 0 {
		out.Labels = proc.LabelMap(s.Want)
	}
	for _, d := range s.GetAfter() {
		out.After = append(out.After, Dependency{Job: d.Job, Any: d.Any})
	}
	for i, text := range s.GetItems() {
		item := Item{Text: text}
		if i < len(s.GetNearItems()) {
			for _, h := range s.NearItems[i].GetBytes() {
				if item.Bytes == nil {
					item.Bytes = map[uint64]int64{}
				}
				item.Bytes[h.Node] = h.Bytes
			}
		}
		out.Items = append(out.Items, item)
	}
	if s.GetArray() && len(out.Items) == 0 {
		out.Array = &IndexRange{First: int(s.First), Last: int(s.Last)}
	}
	return out
}

// submitter is this process's user. As everywhere, a system without user
// numbers acts as root.
func submitter() *procpb.User {
	cred := processCred()
	u := &procpb.User{Uid: cred.GetUid(), Gid: cred.GetGid(), Groups: cred.GetGroups(), Name: strconv.FormatUint(uint64(cred.GetUid()), 10)}
	if known, err := accounts.LookupUser(u.Uid); err == nil {
		u.Name = known.Name
	} else if os.Getuid() < 0 {
		u.Name = "root"
	}
	u.Host, _ = os.Hostname() // for people: better none than no job
	return u
}
