package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path"
	"strconv"
	"strings"
	"syscall"

	"github.com/koinon/koinon"
	"github.com/koinon/koinon/cmd/koinon/internal/transfer"
)

// check refuses flags that make no sense together.
func (f *runFlags) check() error {
	switch {
	case f.size < 1:
		return fmt.Errorf("-n is %d: give the number of processes, from 1 on", f.size)
	case f.cpus < 0 || f.cpus == 0 && f.memory == 0:
		return fmt.Errorf("-c is %v: every process needs some CPU or memory, such as -c 0.1", f.cpus)
	case f.memory < 0:
		return fmt.Errorf("-m is %v, which is negative", f.memory)
	case f.timeout < 0:
		return fmt.Errorf("--timeout is %v: give a time from 0 on, which is never", f.timeout)
	case f.grace < 0:
		return fmt.Errorf("--grace is %v: give a time from 0 on, which is 10s", f.grace)
	case f.retries < 0:
		return fmt.Errorf("--retries is %d: give a number from 0 on", f.retries)
	case f.atOnce < 0:
		return fmt.Errorf("--at-once is %d: give a number from 0 on, which is no limit", f.atOnce)
	case f.array != "" && f.each != "":
		return errors.New("a job has indices (--array) or files (--each), not both")
	case f.atOnce > 0 && f.array == "" && f.each == "":
		return errors.New("--at-once is for --array and --each")
	case f.stdin && f.detach:
		return errors.New("-i reads from this terminal, -d leaves the job to itself: give one of them")
	case f.stdin && (f.size > 1 || f.array != "" || f.each != ""):
		return errors.New("-i is for a single process: nobody could say which of several reads what")
	case f.stdin && f.retries > 0:
		return errors.New("-i and --retries: what one try has read, the next cannot read again; pass it as a file of the tree")
	}
	return nil
}

// jobSpec is what the flags ask for.
func (p *procsApp) jobSpec(ctx context.Context, procs *koinon.Procs, f runFlags, command []string) (koinon.JobSpec, error) {
	s := koinon.JobSpec{
		Name: f.name, Command: command, CPUs: f.cpus, Memory: int64(f.memory), Size: f.size, Pack: f.pack,
		Timeout: f.timeout, Grace: f.grace, Retries: f.retries, AtOnce: f.atOnce, Stdin: p.passesInput(f),
	}
	var err error
	if s.Env, err = environment(f.env, os.LookupEnv); err != nil {
		return s, err
	}
	if s.After, err = dependencies(f.after); err != nil {
		return s, err
	}
	if f.array != "" {
		atOnce := 0
		if s.Array, atOnce, err = parseArray(f.array); err != nil {
			return s, err
		}
		if atOnce > 0 && f.atOnce > 0 {
			return s, fmt.Errorf("--array %s and --at-once %d both say how many tasks run at once: give one of them", f.array, f.atOnce)
		}
		s.AtOnce += atOnce
	}
	if err := placement(&s, f.on, func() ([]koinon.ProcNode, error) { return procs.Nodes(ctx) }); err != nil {
		return s, err
	}
	return s, p.paths(ctx, procs, f, &s)
}

// inTree are the paths of flags as paths in the tree; of what was not given empty.
type inTree struct{ dir, near, out, each string }

// inTree finds out what flags mean on this machine.
func (p *procsApp) inTree(f runFlags) (t inTree, err error) {
	at, err := p.where()
	if err != nil {
		return t, err
	}
	if f.dir == "" {
		if t.dir, err = at.treeDir(); err != nil {
			return t, err
		}
	}
	for _, a := range []struct {
		arg string
		to  *string
	}{{f.dir, &t.dir}, {f.near, &t.near}, {f.out, &t.out}, {f.each, &t.each}} {
		if a.arg == "" {
			continue
		}
		if *a.to, err = at.path(a.arg); err != nil {
			return t, err
		}
	}
	if strings.HasSuffix(f.each, "/") { // directories
		t.each += "/"
	}
	return t, nil
}

// paths sets what lies in the tree.
func (p *procsApp) paths(ctx context.Context, procs *koinon.Procs, f runFlags, s *koinon.JobSpec) error {
	t, err := answered(ctx, func() (inTree, error) { return p.inTree(f) })
	if err != nil {
		return err
	}
	s.Dir, s.Near, s.Out = t.dir, t.near, t.out
	if f.dir == "" && f.near == "" && f.each == "" && !strings.HasPrefix(f.out, transfer.Prefix) {
		return nil
	}
	tree, err := procs.Tree(ctx)
	if err != nil {
		return err
	}
	if err := realPaths(ctx, tree, f, s); err != nil || f.each == "" {
		return err
	}
	s.Items, err = tree.Items(ctx, t.each, s.Dir)
	return treeError("expand --each", t.each, err, hint{path.ErrBadPattern, `close the [ with a ], or write \[ for the sign itself`})
}

// realPaths looks whether what the flags name is there, and follows the symbolic links of the tree in the paths that
// processes and their outputs are to be in.
func realPaths(ctx context.Context, tree *koinon.Client, f runFlags, s *koinon.JobSpec) error {
	if f.near != "" {
		if _, err := tree.Stat(ctx, s.Near); err != nil {
			return treeError("place near", s.Near, err, hint{syscall.ENOENT, "--near names what is in the tree"})
		}
	}
	if f.dir != "" {
		info, err := tree.Stat(ctx, s.Dir)
		if err == nil && !info.IsDir() {
			err = syscall.ENOTDIR
		}
		var dir string
		if err == nil {
			dir, err = tree.RealPath(ctx, s.Dir)
		}
		if err != nil {
			return treeError("start in", s.Dir, err, hint{syscall.ENOENT, "-C names a directory of the tree"})
		}
		s.Dir = dir
	}
	if f.out != "" {
		dir, rest := path.Dir(s.Out), path.Base(s.Out)
		for strings.Contains(dir, "{}") { // it is another one for each task
			dir, rest = path.Dir(dir), path.Join(path.Base(dir), rest)
		}
		real, err := tree.RealPath(ctx, dir)
		if err != nil {
			return treeError("put outputs into", dir, err, hint{syscall.ENOENT, "make that directory of the tree first"})
		}
		s.Out = path.Join(real, rest)
	}
	return nil
}

// passesInput says whether the process reads this command's standard input.
// What is not asked for by -i is passed where it can be, and is more than
// /dev/null.
func (p *procsApp) passesInput(f runFlags) bool {
	if f.stdin {
		return true
	}
	if f.detach || f.size > 1 || f.array != "" || f.each != "" || f.retries > 0 || isTerminal(p.in) {
		return false
	}
	file, ok := p.in.(*os.File)
	if !ok {
		return p.in != nil
	}
	info, err := file.Stat()
	if err != nil {
		return false
	}
	null, err := os.Stat(os.DevNull)
	return err != nil || !os.SameFile(info, null)
}

// environment is what --env asks for.
func environment(args []string, lookup func(string) (string, bool)) ([]string, error) {
	var env []string
	for _, a := range args {
		name, _, given := strings.Cut(a, "=")
		if name == "" {
			return nil, fmt.Errorf("--env is %q: give K=V, or K for this shell's value", a)
		}
		if strings.HasPrefix(name, koinon.OwnVariables) {
			return nil, fmt.Errorf("--env %s: names that begin with %s are Koinon's own: choose another one", name, koinon.OwnVariables)
		}
		if !given {
			value, ok := lookup(name)
			if !ok {
				return nil, fmt.Errorf("--env %s: there is no such variable here: give its value, %s=V", name, name)
			}
			a = name + "=" + value
		}
		env = append(env, a)
	}
	return env, nil
}

// dependencies are what --after asks for.
func dependencies(args []string) ([]koinon.Dependency, error) {
	var after []koinon.Dependency
	for _, a := range args {
		how, job, _ := strings.Cut(a, ":")
		id, err := strconv.ParseUint(job, 10, 64)
		if how != "ok" && how != "any" || err != nil || id == 0 {
			return nil, fmt.Errorf("--after is %q: give ok:ID to wait for a job's success, any:ID to wait for its end; --after once for each job", a)
		}
		after = append(after, koinon.Dependency{Job: id, Any: how == "any"})
	}
	return after, nil
}

// parseArray reads FIRST-LAST[%ATONCE], or a single index.
func parseArray(s string) (*koinon.IndexRange, int, error) {
	bad := func(err error) error {
		if errors.Is(err, strconv.ErrRange) {
			return fmt.Errorf("--array is %q: its numbers are at most %d", s, math.MaxInt32)
		}
		return fmt.Errorf("--array is %q: give the first and the last index, such as 0-99, or 0-99%%10 for at most ten tasks at once", s)
	}
	indices, most, limited := strings.Cut(s, "%")
	first, last, ranged := strings.Cut(indices, "-")
	if !ranged {
		last = first
	}
	a, aerr := strconv.ParseUint(first, 10, 31)
	b, berr := strconv.ParseUint(last, 10, 31)
	if aerr != nil || berr != nil || b < a {
		return nil, 0, bad(cmp.Or(aerr, berr))
	}
	atOnce := uint64(0)
	if limited {
		var err error
		if atOnce, err = strconv.ParseUint(most, 10, 31); err != nil || atOnce == 0 {
			return nil, 0, bad(err)
		}
	}
	return &koinon.IndexRange{First: int(a), Last: int(b)}, int(atOnce), nil
}

// placement sets what --on asks for.
func placement(s *koinon.JobSpec, args []string, nodes func() ([]koinon.ProcNode, error)) error {
	for _, a := range args {
		if label, value, ok := strings.Cut(a, "="); ok {
			if label == "" {
				return fmt.Errorf("--on is %q: give NODE, or LABEL=V", a)
			}
			if had, twice := s.Labels[label]; twice && had != value {
				return fmt.Errorf("--on asks for %s=%s and %s=%s: no node has both", label, had, label, value)
			}
			if s.Labels == nil {
				s.Labels = map[string]string{}
			}
			s.Labels[label] = value
			continue
		}
		id, err := findNode(a, nodes)
		if err != nil {
			return err
		}
		s.Nodes = append(s.Nodes, id)
	}
	return nil
}
