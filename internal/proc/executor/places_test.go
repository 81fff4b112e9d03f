//go:build linux

package executor

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/containerd/cgroups/v3/cgroup1"
	"golang.org/x/sys/unix"
)

// whereAndLimits prints the cgroup of each controller of v1 that a process is in, with its limit.
const whereAndLimits = `
for c in cpu:cpu.cfs_quota_us memory:memory.limit_in_bytes; do
	at=$(sed -n "s/^[0-9]*:\(.*,\)\?${c%%:*}\(,.*\)\?://p" /proc/self/cgroup)
	for m in $(awk '$3 == "cgroup" && $4 ~ /(^|,)'${c%%:*}'(,|$)/ { print $2 }' /proc/self/mounts); do echo ${c%%:*} $at $(cat $m$at/${c#*:}); done
done`

// TestPlacesAreUsedAgain: short processes that follow each other share few cgroups of v1, and each has its own limits in them. What
// has had a limit of memory, or is still in its place, has that to itself.
func TestPlacesAreUsedAgain(t *testing.T) {
	n := limited(t)
	if !n.Enforced().CPU {
		t.Logf("not enforced: %s", n.Enforced().Why)
		return
	}
	job := uint64(0)
	place := func(l Limits) (at, limit map[string]string) {
		t.Helper()
		job++
		s := spec(job, whereAndLimits)
		s.Limits = l
		if st := n.run(s); st.Code != 0 || st.Cause != Exited {
			t.Fatalf("found %+v, %s", st, n.read(s.ID, Stderr))
		}
		at, limit = map[string]string{}, map[string]string{}
		for line := range strings.Lines(n.read(s.ID, Stdout)) {
			f := strings.Fields(line)
			if len(f) != 3 {
				t.Fatalf("controller, cgroup and limit expected, found %q", line)
			}
			at[f[0]], limit[f[0]] = f[1], f[2]
		}
		return at, limit
	}
	used := map[string]int{}
	const runs = 5 * limitedThreads
	for i := range runs {
		cpu := int64(500 + i)
		at, limit := place(Limits{CPU: cpu})
		if len(at) == 0 {
			return // limits are those of v2, which has no places
		}
		if want := fmt.Sprint(cpu * cpuPeriod / 1000); limit["cpu"] != want {
			t.Errorf("a quota of %s expected, found %s", want, limit["cpu"])
		}
		used[at["cpu"]]++
	}
	if len(used) == runs {
		t.Errorf("%d processes one after the other had %d places, fewer expected", runs, len(used))
	}
	const memory = 64 << 20
	own := map[string]bool{}
	for range 2 * limitedThreads {
		at, limit := place(Limits{Memory: memory})
		if limit["memory"] != fmt.Sprint(memory) || limit["cpu"] != "-1" || own[at["memory"]] {
			t.Errorf("a limit of memory in a place of its own expected, and none of CPU, found %v in %v", limit, at)
		}
		own[at["memory"]] = true
		if at, limit = place(Limits{CPU: 1000}); limit["memory"] == fmt.Sprint(memory) || own[at["memory"]] {
			t.Errorf("no limit of memory expected, found %v in %v", limit, at)
		}
	}
}

// TestForkingThreadsGoHome: a thread that forks may be the main one, whose cgroup is what the system calls the process's. The
// threads go back to where the supervisor was nevertheless.
func TestForkingThreadsGoHome(t *testing.T) {
	g, err := openGroups(supervisorName(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	if len(g.v1) == 0 {
		t.Logf("no limits of v1: %+v", g.enforced)
		return
	}
	p, err := g.makeV1("main")
	if err != nil {
		t.Fatal(err)
	}
	main := cgroup1.Process{Pid: os.Getpid()}
	if err := p.v1.AddTask(main); err != nil {
		t.Fatal(err)
	}
	l := newLauncher(g)
	one := &launch{spec: Spec{Argv: []string{"none"}, Dir: "/", Limits: Limits{CPU: 1000}}, path: "/none", group: &group{}}
	if err := l.start(one); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a thread forks: %v", err)
	}
	if err := one.group.remove(); err != nil {
		t.Error(err)
	}
	// All threads of the process, since the main one may have made others, which then are where it was.
	if err := errors.Join(g.home.Add(main), p.v1.Delete()); err != nil {
		t.Error(err)
	}
	l.close()
	if err := g.close(); err != nil {
		t.Error(err)
	}
}

// TestPeakIsOfTheProcessAlone: the most memory that a process had is not that of the supervisor, from which it was forked, nor
// that of who was in its place before.
func TestPeakIsOfTheProcessAlone(t *testing.T) {
	eachTracking(t, func(t *testing.T, n *node) {
		const small, large = 12 << 20, 96 << 20
		for i := range 3 * limitedThreads {
			s := spec(uint64(i+1), "exit 0")
			if i%3 == 1 {
				s = spec(uint64(i+1), fmt.Sprintf("head -c %d /dev/zero | tail -c %[1]d | wc -c", large))
			}
			s.Limits = Limits{CPU: 1000}
			switch st := n.run(s); {
			case st.Code != 0:
				t.Fatalf("found %+v, %s", st, n.read(s.ID, Stderr))
			case i%3 == 1 && (st.RSS < large || st.RSS > 2*large):
				t.Errorf("%d bytes expected, found %d", large, st.RSS)
			case i%3 != 1 && st.RSS > small:
				t.Errorf("a shell that does nothing had %d bytes", st.RSS)
			}
		}
	})
}
