package proc

import (
	"encoding/json"
	"fmt"
	"path"
	"strings"
	"time"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/proc/procpb"
	"github.com/koinon/koinon/internal/sys"
)

// tree is the tree of files as the process table needs it. A refusal is an
// error; what it refuses has changed nothing.
type tree interface {
	Do(cmd *metapb.Command) (*metapb.Result, error)
	Query(q *metapb.Query) (*metapb.Answer, error)
}

// Status is what the file status of a process holds, as JSON.
type Status struct {
	ID       string    `json:"id"`
	Name     string    `json:"name,omitempty"`
	State    string    `json:"state"`
	Node     string    `json:"node"`
	PID      uint32    `json:"pid,omitempty"`
	Epoch    uint32    `json:"epoch"`
	Started  time.Time `json:"started,omitzero"`
	Ended    time.Time `json:"ended,omitzero"`
	ExitCode *uint32   `json:"exit_code,omitempty"` // since it has ended, when it is known
	Signal   uint32    `json:"signal,omitempty"`
	OOM      bool      `json:"oom,omitempty"`
	CPU      float64   `json:"cpu_seconds,omitempty"`
	RSSMax   int64     `json:"rss_max_bytes,omitempty"`
	Why      string    `json:"why,omitempty"`
}

// StatusOf describes a process.
func StatusOf(spec *procpb.Spec, t *procpb.Task, rank uint32) Status {
	p := t.Procs[rank]
	s := Status{ID: ProcessName(spec, t.Job, t.Index, rank).String(), Name: spec.GetName(), State: StateName(p.State), Node: sys.NodeID(p.Node).String(),
		PID: p.Pid, Epoch: t.Epoch, Started: when(p.StartedNs), Ended: when(p.EndedNs), Signal: p.Signal, OOM: p.Oom,
		CPU: float64(p.CpuNs) / 1e9, RSSMax: p.RssMax, Why: p.Why}
	if Over(p.State) && p.State != procpb.State_LOST {
		s.ExitCode = &p.ExitCode
	}
	return s
}

// StateName is a state as people read it.
func StateName(s procpb.State) string { return strings.ToLower(s.String()) }

func when(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns).UTC()
}

// files changes the tree on behalf of the table.
type files struct{ tree tree }

var rootCred = &metapb.Cred{}

func credOf(u *procpb.User) *metapb.Cred {
	return &metapb.Cred{Uid: u.GetUid(), Gid: u.GetGid(), Groups: u.GetGroups()}
}

// lookup finds a name, nil when it is not there.
func (f files) lookup(cred *metapb.Cred, dir uint64, name string) (*metapb.Attr, error) {
	a, err := f.tree.Query(&metapb.Query{Cred: cred, Op: &metapb.Query_Lookup{Lookup: &metapb.Lookup{Parent: dir, Name: []byte(name)}}})
	if sys.Is(err, sys.NotExist) {
		return nil, nil
	}
	return a.GetAttr(), err
}

// walk finds a directory by its path, which goes through no symbolic link.
func (f files) walk(cred *metapb.Cred, p string) (uint64, error) {
	ino := uint64(sys.RootIno)
	for _, name := range strings.Split(p, "/") {
		if name == "" {
			continue
		}
		a, err := f.lookup(cred, ino, name)
		if err == nil && a == nil {
			err = sys.E(sys.Op("proc.walk"), sys.NotExist, sys.Subject(p))
		}
		if err == nil {
			err = noLink(a, p)
		}
		if err != nil {
			return 0, err
		}
		ino = a.Ino
	}
	return ino, nil
}

// noLink refuses a symbolic link in a path.
func noLink(a *metapb.Attr, p string) error {
	if sys.FileType(a.GetType()) != sys.TypeSymlink {
		return nil
	}
	return sys.E(sys.Op("proc.walk"), sys.Invalid, sys.Subject(p), fmt.Sprintf("a symbolic link to %q is in that path: name what it leads to", a.Target))
}

// named is an error about an inode with its path in place of the number.
func named(err error, p string) error {
	e, ok := err.(*sys.Error)
	if !ok {
		return err
	}
	about := *e
	about.Subject = sys.Subject(p)
	return &about
}

// directory finds a directory, and makes it if it is not there, owned by u.
func (f files) directory(parent uint64, name string, u *procpb.User) (uint64, error) {
	if a, err := f.lookup(rootCred, parent, name); err != nil || a != nil {
		return a.GetIno(), err
	}
	res, err := f.tree.Do(&metapb.Command{Cred: rootCred, Op: &metapb.Command_Mknod{Mknod: &metapb.Mknod{
		Parent: parent, Name: []byte(name), Type: uint32(sys.TypeDir), Mode: 0o755}}})
	if sys.Is(err, sys.Exist) { // somebody else has made it meanwhile
		a, err := f.lookup(rootCred, parent, name)
		return a.GetIno(), err
	}
	if err != nil {
		return 0, err
	}
	if uid, gid := u.GetUid(), u.GetGid(); uid != 0 || gid != 0 {
		_, err = f.tree.Do(&metapb.Command{Cred: rootCred, Op: &metapb.Command_SetAttr{SetAttr: &metapb.SetAttr{Ino: res.Attr.Ino, Uid: &uid, Gid: &gid}}})
	}
	return res.Attr.Ino, err
}

// under makes the last element of a path below a directory of ours, owned by
// u; the others are root's.
func (f files) under(dir, name string, u *procpb.User) (uint64, error) {
	ino := uint64(sys.RootIno)
	for _, n := range strings.Split(dir, "/") {
		if n == "" {
			continue
		}
		var err error
		if ino, err = f.directory(ino, n, nil); err != nil {
			return 0, err
		}
	}
	return f.directory(ino, name, u)
}

// home makes the directory of a process's files.
func (f files) home(spec *procpb.Spec, job uint64, index, rank uint32) (uint64, error) {
	return f.under(Dir, ProcessName(spec, job, index, rank).String(), spec.User)
}

// put writes a small file as a whole.
func (f files) put(dir uint64, name string, body []byte, u *procpb.User) error {
	all := &metapb.Commit{Inline: body}
	_, err := f.tree.Do(&metapb.Command{Cred: credOf(u), Op: &metapb.Command_Mknod{Mknod: &metapb.Mknod{
		Parent: dir, Name: []byte(name), Type: uint32(sys.TypeRegular), Mode: 0o644, Body: all}}})
	if err == nil {
		return nil
	}
	old, lookErr := f.lookup(rootCred, dir, name)
	if lookErr != nil || old == nil {
		return err
	}
	all.Ino = old.Ino
	if _, err := f.tree.Do(&metapb.Command{Cred: rootCred, Op: &metapb.Command_SetAttr{SetAttr: &metapb.SetAttr{Ino: old.Ino, Size: new(uint64)}}}); err != nil {
		return err
	}
	_, err = f.tree.Do(&metapb.Command{Cred: rootCred, Op: &metapb.Command_Commit{Commit: all}})
	return err
}

// status writes the file status of a process into its home.
func (f files) status(home uint64, spec *procpb.Spec, t *procpb.Task, rank uint32) error {
	body, err := json.Marshal(StatusOf(spec, t, rank))
	if err != nil {
		return err
	}
	return f.put(home, "status", append(body, '\n'), spec.User)
}

// output writes the outputs that a report has brought.
func (f files) output(home uint64, spec *procpb.Spec, r *procpb.Report) error {
	return firstError(f.put(home, "stdout", r.Stdout, spec.User), f.put(home, "stderr", r.Stderr, spec.User))
}

// publish lets the outputs of a task appear: its private directory, and nothing
// in its place, becomes what the specification calls out. It may be done again.
func (f files) publish(spec *procpb.Spec, t *procpb.Task, out string) error {
	dir, err := f.walk(credOf(spec.User), path.Dir(out))
	if err != nil {
		return err
	}
	if _, err := f.tree.Query(&metapb.Query{Cred: credOf(spec.User), Op: &metapb.Query_Access{Access: &metapb.Access{Ino: dir, Want: 3}}}); err != nil {
		return named(err, path.Dir(out))
	}
	there, err := f.lookup(rootCred, dir, path.Base(out))
	if err != nil || there.GetIno() == t.OutIno && there != nil {
		return err
	}
	from, err := f.walk(rootCred, OutDir)
	if err != nil {
		return err
	}
	name := path.Base(OutPath(TaskName(spec, t.Job, t.Index), t.Epoch))
	if own, err := f.lookup(rootCred, from, name); err != nil || own.GetIno() != t.OutIno {
		if err == nil {
			err = sys.E(sys.Op("proc.publish"), sys.Invalid, sys.Subject("$KOINON_OUT"), "that is no longer the directory that the process was given: write into it, and leave it there")
		}
		return err
	}
	_, err = f.tree.Do(&metapb.Command{Cred: rootCred, Op: &metapb.Command_Rename{Rename: &metapb.Rename{
		Parent: from, Name: []byte(name), NewParent: dir, NewName: []byte(path.Base(out))}}})
	return err
}

// forget deletes the files of a process.
func (f files) forget(n Name) error {
	dir, err := f.walk(rootCred, Dir)
	if err != nil {
		return err
	}
	a, err := f.lookup(rootCred, dir, n.String())
	if err != nil || a == nil {
		return err
	}
	for _, name := range []string{"stdout", "stderr", "status"} {
		_, err := f.tree.Do(&metapb.Command{Cred: rootCred, Op: &metapb.Command_Unlink{Unlink: &metapb.Unlink{Parent: a.Ino, Name: []byte(name)}}})
		if err != nil && !sys.Is(err, sys.NotExist) {
			return err
		}
	}
	_, err = f.tree.Do(&metapb.Command{Cred: rootCred, Op: &metapb.Command_Rmdir{Rmdir: &metapb.Rmdir{Parent: dir, Name: []byte(n.String())}}})
	return err
}

// These do it as part of a command, where the tree is in the same state. That
// the tree refuses does not keep a process from having ended: who looks for its
// files finds the reason in the table.

func (c *command) recordOutput(t *procpb.Task, r *procpb.Report) {
	if c.tree == nil {
		return
	}
	home, err := c.homeOf(t, r.Rank)
	if err == nil {
		err = files{c.tree}.output(home, c.spec(t.Job), r)
	}
	if err != nil {
		p := t.Procs[r.Rank]
		p.Cut = fmt.Sprintf("its output could not be written to the tree: %v", err)
		note(p, p.Cut)
	}
}

func (c *command) recordStatus(t *procpb.Task, rank uint32) {
	if c.tree == nil {
		return
	}
	home, err := c.homeOf(t, rank)
	if err == nil {
		err = files{c.tree}.status(home, c.spec(t.Job), t, rank)
	}
	if err != nil {
		note(t.Procs[rank], fmt.Sprintf("its status could not be written to the tree: %v", err))
	}
}

// homeOf is files.home, which is asked for several times in a row about one process.
func (c *command) homeOf(t *procpb.Task, rank uint32) (uint64, error) {
	if k := (processKey{t.Job, t.Index, rank}); c.at != k {
		c.at = k
		c.home, c.homeErr = files{c.tree}.home(c.spec(t.Job), t.Job, t.Index, rank)
	}
	return c.home, c.homeErr
}

func note(p *procpb.Process, what string) {
	if p.Why != "" {
		what = p.Why + "; " + what
	}
	p.Why = what
}

// publish lets the outputs of a task appear, or has its last process, p, not
// end well.
func (c *command) publish(t *procpb.Task, p *procpb.Process) {
	spec := c.spec(t.Job)
	if c.tree == nil || spec.Out == "" {
		return // where the tree is apart the leader has done it before it proposed the end
	}
	out := outOfItem(spec, c.item(spec, t.Job, t.Index))
	if err := (files{c.tree}).publish(spec, t, out); err != nil {
		p.State, p.ExitCode = procpb.State_FAILED, ExitTrouble
		note(p, notPublished(out, err))
	}
}

func (c *command) forgetFiles(n Name) {
	if c.tree == nil {
		return
	}
	// What somebody has put beside them stays; so does the directory then.
	_ = files{c.tree}.forget(n)
}
