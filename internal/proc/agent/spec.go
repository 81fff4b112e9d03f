//go:build linux

package agent

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/koinon/koinon/internal/accounts"
	"github.com/koinon/koinon/internal/proc/executor"
	"github.com/koinon/koinon/internal/proc/procpb"
	"github.com/koinon/koinon/internal/sys"
)

// searchPath is where a process's commands are looked for, unless its own
// environment says otherwise.
const searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// itemMark stands for the index or the item in a command and its environment.
const itemMark = "{}"

// spec is what the executor is to run, with the tree on mount.
func (a *Agent) spec(p *process, mount string) executor.Spec {
	res, spec := p.task.res, p.task.res.Spec
	dir := mount + spec.Dir
	if dir == "" {
		dir = "/"
	}
	s := executor.Spec{
		ID: p.id, Argv: slices.Clone(spec.Argv), Dir: dir, UID: spec.User.Uid, GID: spec.User.Gid, Groups: spec.User.Groups,
		Limits: executor.Limits{CPU: spec.GetEach().GetCpuMilli(), Memory: spec.GetEach().GetMemory()},
		Stdin:  spec.Stdin,
	}
	own := slices.Clone(spec.Env)
	if res.Item != "" {
		for _, list := range [][]string{s.Argv, own} {
			for i := range list {
				list[i] = strings.ReplaceAll(list[i], itemMark, res.Item)
			}
		}
	}
	s.Env = merge(userEnv(spec.User), koinonEnv(res, p.rank, uint64(a.opts.Node), mount), own)
	return s
}

// userEnv is the environment that a user has everywhere.
func userEnv(u *procpb.User) []string {
	name, home, shell := u.Name, "/", "/bin/sh"
	if known, err := accounts.LookupUser(u.Uid); err == nil {
		name, home = known.Name, known.Home
	}
	if name == "" {
		name = strconv.FormatUint(uint64(u.Uid), 10)
	}
	return []string{"PATH=" + searchPath, "HOME=" + home, "USER=" + name, "LOGNAME=" + name, "SHELL=" + shell}
}

// koinonEnv tells a process where it stands.
func koinonEnv(res *procpb.Reservation, rank uint32, node uint64, mount string) []string {
	env := []string{
		fmt.Sprintf("KOINON_JOB=%d", res.Job), fmt.Sprintf("KOINON_INDEX=%d", res.Index), fmt.Sprintf("KOINON_RANK=%d", rank),
		fmt.Sprintf("KOINON_SIZE=%d", max(1, res.Spec.Size)), fmt.Sprintf("KOINON_EPOCH=%d", res.Epoch),
		"KOINON_NODES=" + strings.Join(res.Names, ","), "KOINON_HOSTS=" + strings.Join(res.Hosts, ","),
	}
	name := sys.NodeID(node).String()
	if int(rank) < len(res.Names) {
		name = res.Names[rank]
	}
	env = append(env, "KOINON_NODE="+name)
	if mount != "" {
		env = append(env, "KOINON_TREE="+mount)
	}
	if res.Item != "" {
		env = append(env, "KOINON_ITEM="+res.Item)
	}
	if res.Out != "" {
		env = append(env, "KOINON_OUT="+path.Join(mount, res.Out))
	}
	return env
}

// merge joins environments; of the same variable the last one counts.
func merge(lists ...[]string) []string {
	var out []string
	at := map[string]int{}
	for _, kv := range slices.Concat(lists...) {
		name, _, _ := strings.Cut(kv, "=")
		if i, ok := at[name]; ok {
			out[i] = kv
			continue
		}
		at[name] = len(out)
		out = append(out, kv)
	}
	return out
}
