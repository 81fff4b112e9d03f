//go:build linux

package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/proc"
	"github.com/koinon/koinon/internal/proc/executor"
	"github.com/koinon/koinon/internal/proc/procpb"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/vfs"
)

const (
	// flushEvery is how often what a process prints is published, while there is
	// news.
	flushEvery = 250 * time.Millisecond
	// copyMax is how much is copied to the tree at once, in bytes.
	copyMax = 1 << 20
	// flushBytes is how much is copied before it is published in any case.
	flushBytes = 4 << 20
	// spoolKeep is how much of what is in the tree the spool keeps as well, for
	// those who follow, in bytes. It is less than the executor's bound.
	spoolKeep = 4 << 20

	// patience is how long a trouble of the tree may last that may pass or not,
	// and patienceAway how long the tree may be away after the process has ended.
	// Then the output is cut.
	patience     = 10 * time.Second
	patienceAway = time.Minute
	retryMin     = 50 * time.Millisecond
	retryMax     = 2 * time.Second
)

var streams = [2]executor.Stream{executor.Stdout, executor.Stderr}

var streamNames = [2]string{"stdout", "stderr"}

// record copies what a process prints to its files of the tree, until it has
// ended and all is there. It returns what is missing, in words, or ctx is done.
func (a *Agent) record(ctx context.Context, p *process) (why string) {
	if err := a.insist(ctx, p, func() (bool, error) { return false, a.makeFiles(ctx, p) }); err != nil {
		a.drain(ctx, p, 0)
		a.drain(ctx, p, 1)
		return cutReason(err)
	}
	var missing [2]string
	var wg sync.WaitGroup
	for i := range streams {
		wg.Go(func() {
			c := &copier{a: a, p: p, i: i, out: a.exec.Output(p.id, streams[i])}
			if err := a.insist(ctx, p, func() (bool, error) {
				before := c.flushed
				err := c.copy(ctx)
				return c.flushed > before, err
			}); err != nil {
				a.drain(ctx, p, i)
				missing[i] = cutReason(err)
			}
		})
	}
	wg.Wait()
	if missing[0] != "" {
		return missing[0]
	}
	return missing[1]
}

// cutReason is for people: they do not know the blocks and inodes on the way.
func cutReason(err error) string {
	if root := sys.Root(err); root != nil {
		err = root
	}
	return fmt.Sprintf("its output was cut: %v", err)
}

// insist does something with the tree until that succeeds or is hopeless. do
// says whether it got on before it failed.
func (a *Agent) insist(ctx context.Context, p *process, do func() (bool, error)) error {
	var since time.Duration // of the trouble; 0: there is none
	wait := retryMin
	for {
		began := a.clock.Boot()
		progress, err := do()
		if err == nil || ctx.Err() != nil {
			return err
		}
		if since == 0 || progress {
			since, wait = began, retryMin
		}
		if a.hopeless(p, err, a.clock.Boot()-since) {
			a.log.Warn("the output of a process is cut", "process", p.name, "err", err)
			return err
		}
		a.log.Debug("the output of a process waits", "process", p.name, "err", err)
		if err := pause(ctx, wait); err != nil {
			return err
		}
		wait = min(2*wait, retryMax)
	}
}

// hopeless says whether to give up on an error that has lasted for some time.
func (a *Agent) hopeless(p *process, err error, lasted time.Duration) bool {
	switch sys.KindOf(err) {
	case sys.Unavailable, sys.NotLeader, sys.SessionGone, sys.Interrupted, sys.StaleEpoch:
		// Without the leader the lease ends before long, and the process with it.
		return p.isOver() && lasted > patienceAway
	case sys.NoSpace, sys.Busy, sys.Corrupt, sys.Other:
		return lasted > patience
	}
	return true // it says so for ever: such as Stale, of a file that was removed
}

func (p *process) isOver() bool { return closed(p.over) }

// makeFiles makes the files of a process's output, owned by its user. Those of
// an earlier try lose their names, so that what still writes to them does no
// harm. Files that were made before are kept.
func (a *Agent) makeFiles(ctx context.Context, p *process) error {
	p.mu.Lock()
	made := p.files[0] != 0
	p.mu.Unlock()
	if made {
		return nil
	}
	fs, err := a.opts.FS(ctx)
	if err != nil {
		return err
	}
	cred := credOf(p.task.res.Spec.User)
	dir, err := makeDirs(ctx, fs, proc.FilesDir(p.name), cred)
	if err != nil {
		return err
	}
	var files [2]sys.Ino
	for i, name := range streamNames {
		if err := fs.Unlink(ctx, vfs.Root(), dir, []byte(name)); err != nil && !sys.Is(err, sys.NotExist) {
			return err
		}
		_, f, err := fs.Create(ctx, cred, dir, []byte(name), 0o644, os.O_WRONLY|os.O_EXCL)
		if err != nil {
			return err
		}
		files[i] = f.Ino()
		f.Release()
	}
	if err := a.store.setFiles(p, files); err != nil {
		return err
	}
	p.mu.Lock()
	p.files = files
	p.mu.Unlock()
	return nil
}

func credOf(u *procpb.User) *metapb.Cred {
	return &metapb.Cred{Uid: u.Uid, Gid: u.Gid, Groups: u.Groups}
}

// makeDirs makes a directory and those above it where they are missing: the
// last one is the user's, the others root's. Others may do the same at once.
func makeDirs(ctx context.Context, fs *vfs.FS, dir string, cred *metapb.Cred) (sys.Ino, error) {
	at := sys.RootIno
	names := strings.Split(strings.Trim(path.Clean(dir), "/"), "/")
	var attr *metapb.Attr
	for _, name := range names {
		var err error
		attr, err = fs.Lookup(ctx, vfs.Root(), at, []byte(name))
		if sys.Is(err, sys.NotExist) {
			attr, err = fs.Mknod(ctx, vfs.Root(), &metapb.Mknod{Parent: uint64(at), Name: []byte(name), Type: uint32(sys.TypeDir), Mode: 0o755})
			if sys.Is(err, sys.Exist) {
				attr, err = fs.Lookup(ctx, vfs.Root(), at, []byte(name))
			}
		}
		if err != nil {
			return 0, err
		}
		at = sys.Ino(attr.GetIno())
	}
	if attr.GetUid() != cred.Uid || attr.GetGid() != cred.Gid {
		if _, err := fs.SetAttr(ctx, vfs.Root(), &metapb.SetAttr{Ino: uint64(at), Uid: &cred.Uid, Gid: &cred.Gid}); err != nil {
			return 0, err
		}
	}
	return at, nil
}

// copier copies one output of a process to its file.
type copier struct {
	a   *Agent
	p   *process
	i   int
	out *executor.Output

	file    *vfs.File
	at      int64 // copied up to here
	flushed int64 // published up to here
	when    time.Duration
}

// copy goes on where the file ends, until the output is complete and published.
// After an error it may be called again: what was not published is copied
// again.
func (c *copier) copy(ctx context.Context) error {
	fs, err := c.a.opts.FS(ctx)
	if err != nil {
		return err
	}
	c.file, err = fs.Open(ctx, credOf(c.p.task.res.Spec.User), c.p.files[c.i], os.O_WRONLY|vfs.CheckNone)
	if err != nil {
		return err
	}
	defer c.file.Release()
	c.at = int64(c.file.Attr().GetSize())
	c.flushed = c.at
	buf := make([]byte, copyMax)
	for {
		spool, err := c.news(ctx)
		if err != nil {
			return err
		}
		n, err := c.out.ReadAt(buf[:min(copyMax, max(0, spool.Size-c.at))], c.at)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if n > 0 {
			if n, err = c.file.WriteAt(ctx, buf[:n], c.at); err != nil {
				return err
			}
			c.at += int64(n)
		}
		done := spool.Final && c.at >= spool.Size
		if err := c.flush(ctx, done); err != nil || done {
			return err
		}
	}
}

// news waits until there is more to copy, or something to publish.
func (c *copier) news(ctx context.Context) (executor.Spool, error) {
	waiting, cancel := ctx, context.CancelFunc(func() {})
	if c.at > c.flushed {
		waiting, cancel = context.WithTimeout(ctx, max(time.Millisecond, c.when+flushEvery-c.a.clock.Boot()))
	}
	defer cancel()
	spool, err := c.out.Wait(waiting, c.at)
	switch {
	case err == nil:
		return spool, nil
	case ctx.Err() != nil:
		return spool, ctx.Err()
	case waiting.Err() != nil:
		return executor.Spool{Size: c.at}, nil
	}
	return spool, err
}

// flush publishes what was copied, when it is time to.
func (c *copier) flush(ctx context.Context, done bool) error {
	now := c.a.clock.Boot()
	if !done && (c.at == c.flushed || now-c.when < flushEvery && c.at-c.flushed < flushBytes) {
		return nil
	}
	if c.at > c.flushed {
		if err := c.file.Flush(ctx); err != nil {
			return err
		}
	}
	c.flushed, c.when = c.at, now
	if done {
		return nil
	}
	return c.a.ack(ctx, c.p, c.i, c.flushed-spoolKeep)
}

// ack lets the executor use the space of an output up to an offset again.
func (a *Agent) ack(ctx context.Context, p *process, i int, upTo int64) error {
	p.mu.Lock()
	news := upTo > p.acked[i]
	p.acked[i] = max(p.acked[i], upTo)
	p.mu.Unlock()
	if !news {
		return nil
	}
	return a.exec.Output(p.id, streams[i]).Ack(ctx, upTo)
}

// drain lets a process go on printing what is not kept anywhere.
func (a *Agent) drain(ctx context.Context, p *process, i int) {
	out := a.exec.Output(p.id, streams[i])
	at := int64(-1)
	for ctx.Err() == nil {
		spool, err := out.Wait(ctx, at)
		if err == nil {
			at = spool.Size
			err = a.ack(ctx, p, i, max(0, at-spoolKeep))
		}
		if spool.Final || sys.Is(err, sys.NotExist) {
			return
		}
		if err != nil && pause(ctx, retryMax) != nil {
			return
		}
	}
}
