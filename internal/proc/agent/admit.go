//go:build linux

package agent

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/koinon/koinon/commit"
	"github.com/koinon/koinon/internal/env/envfs"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/proc/procpb"
	"github.com/koinon/koinon/internal/sys"
)

// detect fills in what the node gives to processes where nothing is said: all
// CPUs, and so much of the memory that the rest of the machine can go on.
func detect(want *procpb.Resources) (*procpb.Resources, error) {
	c := &procpb.Resources{CpuMilli: want.GetCpuMilli(), Memory: want.GetMemory()}
	if c.CpuMilli == 0 {
		c.CpuMilli = int64(runtime.NumCPU()) * 1000
	}
	if c.Memory == 0 {
		var info unix.Sysinfo_t
		if err := unix.Sysinfo(&info); err != nil {
			return nil, sys.E(sys.Op("agent.New"), fmt.Errorf("how much memory this machine has: %w", err))
		}
		c.Memory = int64(info.Totalram) * int64(info.Unit) / 4 * 3
	}
	return c, nil
}

func readReservation(raw []byte) (*procpb.Reservation, error) {
	res := &procpb.Reservation{}
	if err := pb.Unmarshal(raw, res); err != nil {
		return nil, sys.E(sys.Op("agent.Prepare"), sys.Invalid, err)
	}
	if res.Spec == nil || res.Spec.User == nil || len(res.Ranks) == 0 || len(res.Spec.Argv) == 0 {
		return nil, sys.E(sys.Op("agent.Prepare"), sys.Invalid, "a reservation needs ranks, a command and a user")
	}
	return res, nil
}

// need is what the ranks of a reservation need together.
func need(res *procpb.Reservation) *procpb.Resources {
	n := int64(len(res.Ranks))
	return &procpb.Resources{CpuMilli: n * res.Spec.GetEach().GetCpuMilli(), Memory: n * res.Spec.GetEach().GetMemory()}
}

// diskReserve is the disk space below which nothing is taken, in bytes: its end
// could not be recorded.
const diskReserve = 32 << 20

// decide votes on a reservation. With a yes it is held.
func (a *Agent) decide(q commit.Prepare) (commit.Vote, string) {
	res, err := readReservation(q.Payload)
	if err != nil {
		return commit.No, err.Error()
	}
	if reason := a.obstacle(res); reason != "" {
		return commit.No, reason
	}
	a.mu.Lock()
	reason := a.lack(need(res))
	a.mu.Unlock()
	if reason != "" {
		return commit.No, reason
	}
	a.hold(q.Tx, res)
	return commit.Yes, ""
}

// obstacle says why a reservation is out of the question here, whatever is free.
func (a *Agent) obstacle(res *procpb.Reservation) string {
	spec := res.Spec
	if fence := a.fenceNow(); res.Fence != fence {
		return fmt.Sprintf("the node was declared lost meanwhile (fence %d, asked under %d)", fence, res.Fence)
	}
	if uid := os.Geteuid(); uid != 0 && spec.User.Uid != uint32(uid) {
		return fmt.Sprintf("the node does not run as root, so it runs processes of user %d alone, not of %d", uid, spec.User.Uid)
	}
	switch mount, trouble := a.mount(); {
	case trouble != "":
		return trouble
	case mount == "" && (spec.Dir != "" || res.Out != ""):
		return "the tree is not mounted on this node: koinon mount DIR"
	}
	if u, err := envfs.Disk.GetDiskUsage(a.opts.Dir); err == nil && u.TotalBytes > 0 && u.AvailBytes < diskReserve {
		return fmt.Sprintf("the node's disk is full: %d MiB are left", u.AvailBytes>>20)
	}
	return ""
}

// lack says what is not free, "" when all is. The caller holds a.mu.
func (a *Agent) lack(n *procpb.Resources) string {
	cpu, memory := a.capacity.CpuMilli-a.used.CpuMilli, a.capacity.Memory-a.used.Memory
	switch {
	case n.CpuMilli > cpu:
		return fmt.Sprintf("%g of %g CPUs are free, %g are needed", float64(max(0, cpu))/1000, float64(a.capacity.CpuMilli)/1000, float64(n.CpuMilli)/1000)
	case n.Memory > memory:
		return fmt.Sprintf("%d of %d MiB of memory are free, %d are needed", max(0, memory)>>20, a.capacity.Memory>>20, n.Memory>>20)
	}
	return ""
}

// hold reserves for a transaction.
func (a *Agent) hold(tx commit.Tx, res *procpb.Reservation) {
	a.mu.Lock()
	defer a.mu.Unlock()
	h := &hold{res, need(res)}
	a.holds[tx] = h
	a.use(h.need, 1)
}

func (a *Agent) held(tx commit.Tx) *hold {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.holds[tx]
}

// release ends what hold began, if it did.
func (a *Agent) release(tx commit.Tx) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if h := a.holds[tx]; h != nil {
		delete(a.holds, tx)
		a.use(h.need, -1)
		a.settle()
	}
}

// use counts resources as used, or with sign -1 as free again, which the leader
// wants to know. The caller holds a.mu.
func (a *Agent) use(r *procpb.Resources, sign int64) {
	a.used.CpuMilli += sign * r.CpuMilli
	a.used.Memory += sign * r.Memory
	if sign < 0 {
		a.beat.set()
	}
}

func (a *Agent) fenceNow() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.fence
}
