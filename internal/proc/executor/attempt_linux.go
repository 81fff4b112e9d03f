package executor

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/koinon/koinon/internal/daemon"
)

// markerName is the variable by which what belongs to an attempt is found where there are no cgroups.
const markerName = "KOINON_ATTEMPT"

// marker is the variable of an attempt; that of the zero ID is the start of all markers of a supervisor.
func marker(supervisor string, id ID) string {
	if id == (ID{}) {
		return markerName + "=" + supervisor + "/"
	}
	return markerName + "=" + supervisor + "/" + id.String()
}

// family tells what belongs to an attempt.
type family struct {
	marker string
	prefix bool // marker is the start of one
	leader int  // of a process group and session, 0 for none. It must not have been reaped.
	orphan int  // parent whose children belong to it whatever else they say, 0 for none
	not    map[int]bool
}

// pids returns what of it runs now. Zombies do not.
func (f family) pids() []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err == nil && pid != os.Getpid() && !f.not[pid] && f.has(pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// has reports whether a process belongs to it. One that ends meanwhile does not.
func (f family) has(pid int) bool {
	st, err := readStat(pid)
	if err != nil || st.zombie {
		return false
	}
	if f.leader != 0 && (st.group == f.leader || st.session == f.leader) || f.orphan != 0 && st.parent == f.orphan {
		return true
	}
	if f.marker == "" {
		return false
	}
	env, err := daemon.ReadKernel(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		return false // another user's, whom we do not run
	}
	for kv := range bytes.SplitSeq(env, []byte{0}) {
		if string(kv) == f.marker || f.prefix && strings.HasPrefix(string(kv), f.marker) {
			return true
		}
	}
	return false
}

// kill kills all of it until nothing is left, and returns then.
func (f family) kill() error {
	for wait := time.Millisecond; ; wait = min(2*wait, 20*time.Millisecond) {
		pids := f.pids()
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			if err := killIf(pid, func() bool { return f.has(pid) }); err != nil {
				return err
			}
		}
		time.Sleep(wait)
	}
}

type procStat struct {
	parent, group, session int
	zombie                 bool
	rss                    int64 // bytes
	cpu                    time.Duration
}

// residentPeak is the most memory that this process had resident, in bytes (proc_pid_status(5), VmHWM). That of getrusage(2)
// also has what it was forked from.
func residentPeak() (int64, error) {
	text, err := daemon.ReadKernel("/proc/self/status")
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(text), "VmHWM:")
	kib, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
	n, err := strconv.ParseInt(kib, 10, 64)
	return n << 10, err
}

// ticksPerSecond is USER_HZ of Linux.
const ticksPerSecond = 100

// readStat reads /proc/PID/stat, see proc_pid_stat(5).
func readStat(pid int) (procStat, error) {
	text, err := daemon.ReadKernel(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return procStat{}, err
	}
	f := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	const firstField, utime, stime, rss = 3, 14, 15, 24
	if len(f) <= rss-firstField {
		return procStat{}, fmt.Errorf("/proc/%d/stat: expected at least %d fields, found %d", pid, rss, len(f)+firstField-1)
	}
	n := func(field int) int64 { v, _ := strconv.ParseInt(f[field-firstField], 10, 64); return v } // numbers, by the manual page
	return procStat{
		parent: int(n(4)), group: int(n(5)), session: int(n(6)), zombie: f[0] == "Z" || f[0] == "X",
		rss: n(rss) * int64(os.Getpagesize()), cpu: time.Duration(n(utime)+n(stime)) * time.Second / ticksPerSecond,
	}, nil
}
