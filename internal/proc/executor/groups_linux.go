package executor

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/containerd/cgroups/v3/cgroup2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/koinon/koinon/internal/daemon"
)

// cpuPeriod is the period of CPU quotas, µs: the kernel's default.
const cpuPeriod = 100_000

// groups are the cgroups of a supervisor: one for each process, below one of the supervisor's at the root of each
// hierarchy. A machine has the unified hierarchy (v2), those of v1, or both; then v2 has no controllers, but tells best
// what belongs to a process and kills it all at once, and v1 enforces the limits.
type groups struct {
	name     string              // of the supervisor's cgroup
	unified  string              // where v2 is mounted, "" when it is not there or not ours to use
	v2       map[string]bool     // controllers of v2
	v1       []cgroup1.Subsystem // controllers of v1
	home     cgroup1.Cgroup      // where the supervisor is in those of v1
	swap     bool                // v1 counts swap
	enforced Enforced
}

// supervisorName is unique for a directory of this machine.
func supervisorName(dir string) string {
	sum := sha256.Sum256([]byte(dir))
	return "koinon-" + hex.EncodeToString(sum[:8])
}

// openGroups finds out what can be done here by doing it, after killing what an earlier supervisor of the directory has
// left. It fails only when that cannot be killed.
func openGroups(name string) (*groups, error) {
	g := &groups{name: name, v2: map[string]bool{}, enforced: Enforced{Tracking: ByAttempt}}
	var why []string
	if mount := unifiedMount(); mount == "" {
		why = append(why, "no cgroup v2 is mounted")
	} else if err := os.Mkdir(filepath.Join(mount, name), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		why = append(why, err.Error())
	} else {
		g.unified = mount
		g.enforced.Tracking = ByCgroup
	}
	if g.unified != "" {
		if err := g.clear(filepath.Join(g.unified, name)); err != nil {
			return nil, err
		}
	}
	why = append(why, g.probe()...)
	g.enforced.CPU = g.has("cpu")
	g.enforced.Memory = g.has("memory")
	if !g.enforced.CPU || !g.enforced.Memory || g.enforced.Tracking != ByCgroup {
		g.enforced.Why = strings.Join(why, "; ")
	}
	return g, nil
}

// probe finds the controllers that can be used, and says why others cannot.
func (g *groups) probe() (why []string) {
	some := int64(64 << 20)
	quota, period := int64(cpuPeriod), uint64(cpuPeriod)
	if g.unified != "" {
		for name, res := range map[string]*cgroup2.Resources{
			"cpu":    {CPU: &cgroup2.CPU{Max: cgroup2.NewCPUMax(&quota, &period)}},
			"memory": {Memory: &cgroup2.Memory{Max: &some}},
		} {
			m, err := cgroup2.NewManager(g.unified, "/"+g.name+"/probe", res)
			if err == nil {
				err = m.Delete()
				g.v2[name] = true
			}
			if err != nil {
				why = append(why, err.Error())
			}
		}
	}
	all, err := cgroup1.Default()
	if err != nil {
		return append(why, err.Error())
	}
	for _, s := range all {
		if !slices.Contains([]cgroup1.Name{cgroup1.Cpu, cgroup1.Memory}, s.Name()) || g.v2[string(s.Name())] {
			continue
		}
		if err := g.clear(v1Path(s, g.name)); err != nil {
			why = append(why, err.Error())
			continue
		}
		one := func() ([]cgroup1.Subsystem, error) { return []cgroup1.Subsystem{s}, nil }
		c, err := cgroup1.New(cgroup1.StaticPath("/"+g.name+"/probe"), &specs.LinuxResources{
			CPU: &specs.LinuxCPU{Quota: &quota, Period: &period}, Memory: &specs.LinuxMemory{Limit: &some}}, cgroup1.WithHierarchy(one))
		if err == nil {
			err = c.Delete()
		}
		if err != nil {
			why = append(why, err.Error())
			continue
		}
		g.v1 = append(g.v1, s)
		if _, err := os.Stat(filepath.Join(v1Path(s, g.name), "memory.memsw.limit_in_bytes")); err == nil {
			g.swap = true
		}
	}
	// Now: later the main thread, whose cgroup is the process's, may be one that forks, and in a place.
	if g.home, err = cgroup1.Load(cgroup1.NestedPath(""), cgroup1.WithHierarchy(func() ([]cgroup1.Subsystem, error) { return g.v1, nil })); err != nil && len(g.v1) > 0 {
		g.v1 = nil
		why = append(why, err.Error())
	}
	return why
}

func v1Path(s cgroup1.Subsystem, group string) string {
	return s.(interface{ Path(string) string }).Path("/" + group)
}

// has reports whether a controller enforces.
func (g *groups) has(name string) bool {
	return g.v2[name] || slices.ContainsFunc(g.v1, func(s cgroup1.Subsystem) bool { return string(s.Name()) == name })
}

func unifiedMount() string {
	text, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 3 && f[2] == "cgroup2" {
			return f[1]
		}
	}
	return ""
}

// clear kills what runs in the cgroups below one, and removes them.
func (g *groups) clear(path string) error {
	below, err := os.ReadDir(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	for _, e := range below {
		if !e.IsDir() {
			continue
		}
		p := filepath.Join(path, e.Name())
		if err := killCgroup(p); err != nil {
			return err
		}
		if err := awaitEmpty(p); err != nil {
			return err
		}
		if err := removeCgroup(p); err != nil {
			return err
		}
	}
	return nil
}

// close removes the supervisor's cgroups.
func (g *groups) close() error {
	var err error
	if g.unified != "" {
		err = removeCgroup(filepath.Join(g.unified, g.name))
	}
	for _, s := range g.v1 {
		err = errors.Join(err, removeCgroup(v1Path(s, g.name)))
	}
	return err
}

// group is the cgroup of one process. The zero group is one that the machine cannot make.
type group struct {
	path  string // in v2
	dir   *os.File
	place *tenancy // in v1
	v2    *cgroup2.Manager
}

// place is a cgroup of v1 with a thread in it, from which processes are forked one after the other. It belongs to the thread.
type place struct {
	name   string
	v1     cgroup1.Cgroup
	peak   string   // file with the most memory that was in use at once, bytes; "" for none
	limits *Limits  // those that are set; nil for none yet
	tenant *tenancy // the last one; nil for none
}

// tenancy is the time of one process in a place.
type tenancy struct {
	v1   cgroup1.Cgroup
	peak string        // of the place
	over chan struct{} // closed when the process has ended and all that was with it
	left chan bool     // then tells whether the place goes with it, or stays the thread's
}

// occupy begins the time of a process.
func (p *place) occupy() *tenancy {
	p.tenant = &tenancy{v1: p.v1, peak: p.peak, over: make(chan struct{}), left: make(chan bool, 1)}
	return p.tenant
}

// vacate ends the time of a process: the place is the thread's alone.
func (p *place) vacate() {
	p.tenant.left <- false
	p.tenant = nil
}

// leave leaves the place to the process that is there, or removes it.
func (p *place) leave() {
	switch {
	case p.tenant != nil:
		p.tenant.left <- true
	case p.v1 != nil:
		if err := p.v1.Delete(); err != nil {
			slog.Error("remove a cgroup", "error", err)
		}
	}
	p.v1, p.tenant = nil, nil
}

// make makes the v2 part of a group, with limits where v2 has controllers.
func (g *groups) make(name string, l Limits) (*group, error) {
	one := &group{}
	if g.unified == "" {
		return one, nil
	}
	one.path = filepath.Join(g.unified, g.name, name)
	res := &cgroup2.Resources{}
	if l.CPU > 0 && g.v2["cpu"] {
		quota, period := l.CPU*cpuPeriod/1000, uint64(cpuPeriod)
		res.CPU = &cgroup2.CPU{Max: cgroup2.NewCPUMax(&quota, &period)}
	}
	if l.Memory > 0 && g.v2["memory"] {
		none := int64(0)
		res.Memory = &cgroup2.Memory{Max: &l.Memory, Swap: &none}
		if _, err := os.Stat("/proc/swaps"); err != nil {
			res.Memory.Swap = nil // a kernel without swap has no file for it
		}
	}
	var err error
	if res.CPU == nil && res.Memory == nil { // nothing to set: the library looks at a dozen files then, too
		if err = os.Mkdir(one.path, 0o755); err == nil {
			one.v2, err = cgroup2.Load("/"+g.name+"/"+name, cgroup2.WithMountpoint(g.unified))
		}
	} else {
		one.v2, err = cgroup2.NewManager(g.unified, "/"+g.name+"/"+name, res)
	}
	if err != nil {
		return nil, err
	}
	if one.dir, err = os.Open(one.path); err != nil {
		return nil, errors.Join(err, one.remove())
	}
	return one, nil
}

// makeV1 makes the v1 part of groups without limits, for a thread to move into.
func (g *groups) makeV1(name string) (*place, error) {
	hierarchy := func() ([]cgroup1.Subsystem, error) { return g.v1, nil }
	name = "/" + g.name + "/" + name
	c, err := cgroup1.New(cgroup1.StaticPath(name), &specs.LinuxResources{}, cgroup1.WithHierarchy(hierarchy))
	p := &place{name: name, v1: c}
	for _, s := range g.v1 {
		if s.Name() == cgroup1.Memory {
			p.peak = filepath.Join(s.(interface{ Path(string) string }).Path(name), "memory.max_usage_in_bytes")
		}
	}
	return p, err
}

// leftMost is how much memory may be left in a place for it to be as good as new, in bytes: the kernel returns what was used
// in portions.
const leftMost = 1 << 20

// asNew reports whether a process that ended has left its place as it was: nothing that runs, no memory (such as pages of
// files that it has read) that would count for the next one, no limits that cannot be taken back.
func (g *groups) asNew(p *place) bool {
	if p.limits == nil || p.limits.Memory > 0 {
		return false
	}
	for _, s := range g.v1 {
		dir := s.(interface{ Path(string) string }).Path(p.name)
		if pids, err := cgroupPIDs(dir); err != nil || len(pids) > 0 {
			return false
		}
		if s.Name() != cgroup1.Memory {
			continue
		}
		used, err := daemon.ReadKernel(filepath.Join(dir, "memory.usage_in_bytes"))
		if err != nil {
			return false
		}
		if n, err := strconv.ParseInt(strings.TrimSpace(string(used)), 10, 64); err != nil || n > leftMost {
			return false
		}
		if os.WriteFile(p.peak, []byte("0"), 0) != nil { // the most of now on
			return false
		}
		if killed, err := daemon.ReadKernel(filepath.Join(dir, "memory.oom_control")); err != nil || !strings.Contains(string(killed), "oom_kill 0\n") {
			return false
		}
	}
	return true
}

// limitV1 sets limits on a place.
func (g *groups) limitV1(p *place, l Limits) error {
	if p.limits != nil && *p.limits == l {
		return nil
	}
	p.limits = nil
	res := &specs.LinuxResources{}
	if l.CPU > 0 {
		quota, period := l.CPU*cpuPeriod/1000, uint64(cpuPeriod)
		res.CPU = &specs.LinuxCPU{Quota: &quota, Period: &period}
	} else {
		none := int64(-1) // there may be that of an earlier one
		res.CPU = &specs.LinuxCPU{Quota: &none}
	}
	if l.Memory > 0 {
		res.Memory = &specs.LinuxMemory{Limit: &l.Memory}
		if g.swap {
			res.Memory.Swap = &l.Memory // memory and swap together
		}
	}
	if err := p.v1.Update(res); err != nil {
		return err
	}
	p.limits = &l
	return nil
}

// tracked reports whether the kernel knows what belongs to the process.
func (g *group) tracked() bool { return g.path != "" }

// kill kills all that is in the group.
func (g *group) kill() error { return killCgroup(g.path) }

// pids returns what is in the group.
func (g *group) pids() []int {
	pids, _ := cgroupPIDs(g.path) // a group that has gone holds nothing
	return pids
}

// cpu is what all that was ever in the group has used.
func (g *group) cpu() time.Duration {
	if g.v2 == nil {
		return 0
	}
	text, err := daemon.ReadKernel(filepath.Join(g.path, "cpu.stat"))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(text), "usage_usec ")
	used, _, _ := strings.Cut(rest, "\n")
	us, err := strconv.ParseInt(used, 10, 64)
	if err != nil {
		return 0
	}
	return time.Duration(us) * time.Microsecond
}

// peak is the most memory that all in the group has used at once, in bytes; 0 when the kernel does not tell.
func (g *group) peak() int64 {
	var files []string
	if g.place != nil && g.place.peak != "" {
		files = append(files, g.place.peak)
	}
	if g.path != "" {
		files = append(files, filepath.Join(g.path, "memory.peak")) // since Linux 5.19, with the controller
	}
	for _, file := range files {
		text, err := daemon.ReadKernel(file)
		if err != nil {
			continue
		}
		if n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err == nil {
			return n
		}
	}
	return 0
}

// oom reports whether the kernel has killed something in the group for want of memory.
func (g *group) oom() bool {
	if g.place != nil {
		if m, err := g.place.v1.Stat(cgroup1.IgnoreNotExist); err == nil && m.MemoryOomControl != nil && m.MemoryOomControl.OomKill > 0 {
			return true
		}
	}
	if g.v2 == nil {
		return false
	}
	m, err := g.v2.StatFiltered(cgroup2.StatMemoryEvents)
	return err == nil && m.MemoryEvents != nil && m.MemoryEvents.OomKill > 0
}

// remove removes the group, which must be empty, or gives its place in v1 back to the thread that forked. It may be called
// once.
func (g *group) remove() error {
	var err error
	if g.dir != nil {
		err = g.dir.Close()
	}
	if g.path != "" {
		err = errors.Join(err, removeCgroup(g.path))
	}
	if g.place != nil {
		close(g.place.over)
		if <-g.place.left {
			err = errors.Join(err, g.place.v1.Delete())
		}
	}
	return err
}

// killPasses bounds how often a group without cgroup.kill is gone through.
const killPasses = 1000

// killCgroup kills all in a cgroup: by one write where the kernel can (v2 since Linux 5.14), else one by one, until
// none is left that forks.
func killCgroup(path string) error {
	err := os.WriteFile(filepath.Join(path, "cgroup.kill"), []byte("1"), 0)
	if err == nil || !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	for range killPasses {
		pids, err := cgroupPIDs(path)
		if err != nil || len(pids) == 0 {
			return err
		}
		for _, pid := range pids {
			err = errors.Join(err, killIf(pid, func() bool { now, _ := cgroupPIDs(path); return slices.Contains(now, pid) }))
		}
		if err != nil {
			return err
		}
	}
	return fmt.Errorf("%s does not become empty", path)
}

// killIf kills a process that is still the one meant when it cannot be mistaken any more.
func killIf(pid int, meant func() bool) error {
	fd, err := daemon.Open(pid)
	if errors.Is(err, daemon.ErrGone) {
		return nil
	} else if err != nil {
		return err
	}
	if meant() {
		if err = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); errors.Is(err, unix.ESRCH) {
			err = nil
		}
	}
	return errors.Join(err, unix.Close(fd))
}

// cgroupPIDs returns the processes in a cgroup but ourselves: a thread of ours may be in one of v1.
func cgroupPIDs(path string) ([]int, error) {
	text, err := daemon.ReadKernel(filepath.Join(path, "cgroup.procs"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	var pids []int
	for line := range strings.Lines(string(text)) {
		if pid, err := strconv.Atoi(strings.TrimSpace(line)); err == nil && pid != os.Getpid() {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// awaitEmpty returns when nothing runs in a cgroup any more. What was killed ends for certain, but when it likes.
func awaitEmpty(path string) error {
	for wait := 100 * time.Microsecond; ; wait = min(2*wait, 20*time.Millisecond) {
		pids, err := cgroupPIDs(path)
		if err != nil || len(pids) == 0 {
			return err
		}
		time.Sleep(wait)
	}
}

// removeTries bounds how long the kernel may take to see that a cgroup is empty.
const removeTries = 12

func removeCgroup(path string) error {
	var err error
	for wait := time.Millisecond; wait < time.Millisecond<<removeTries; wait *= 2 {
		if err = os.Remove(path); err == nil || errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if !errors.Is(err, unix.EBUSY) {
			return err
		}
		time.Sleep(wait)
	}
	return err
}
