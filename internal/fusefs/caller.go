//go:build linux

package fusefs

import (
	"bufio"
	"bytes"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/koinon/koinon/internal/meta/metapb"
)

const (
	// groupsTTL is how long the groups of a process are remembered, groupsMax
	// of how many processes.
	groupsTTL = time.Second
	groupsMax = 1024
)

// callers finds out who makes a request. The request tells uid and gid; the
// supplementary groups are read from /proc.
type callers struct {
	mu    sync.Mutex
	known map[uint32]caller // by process
}

type caller struct {
	uid, gid uint32
	groups   []uint32
	until    time.Time
}

// cred returns the identity of a request's caller. Root needs no groups. A
// process that cannot be seen from here, as one in another PID namespace, has
// none.
func (c *callers) cred(h *fuse.InHeader) *metapb.Cred {
	cred := &metapb.Cred{Uid: h.Uid, Gid: h.Gid}
	if h.Uid == 0 || h.Pid == 0 {
		return cred
	}
	now := time.Now()
	c.mu.Lock()
	known, ok := c.known[h.Pid]
	c.mu.Unlock()
	if !ok || known.uid != h.Uid || known.gid != h.Gid || now.After(known.until) {
		known = caller{uid: h.Uid, gid: h.Gid, groups: groupsOf(h.Pid), until: now.Add(groupsTTL)}
		c.mu.Lock()
		if c.known == nil || len(c.known) >= groupsMax {
			c.known = make(map[uint32]caller)
		}
		c.known[h.Pid] = known
		c.mu.Unlock()
	}
	cred.Groups = known.groups
	return cred
}

// groupsOf reads the supplementary groups of a process (proc_pid_status(5)),
// nil when that fails: the process may be gone.
func groupsOf(pid uint32) []uint32 {
	status, err := os.ReadFile("/proc/" + strconv.FormatUint(uint64(pid), 10) + "/status")
	if err != nil {
		return nil
	}
	var groups []uint32
	for lines := bufio.NewScanner(bytes.NewReader(status)); lines.Scan(); {
		list, ok := bytes.CutPrefix(lines.Bytes(), []byte("Groups:"))
		if !ok {
			continue
		}
		for _, field := range bytes.Fields(list) {
			if gid, err := strconv.ParseUint(string(field), 10, 32); err == nil {
				groups = append(groups, uint32(gid))
			}
		}
		break
	}
	return groups
}
