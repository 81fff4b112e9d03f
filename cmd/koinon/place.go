package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/koinon/koinon/cmd/koinon/internal/transfer"
	"github.com/koinon/koinon/internal/mountinfo"
	"github.com/koinon/koinon/internal/sys"
)

// place is where the user stands: a directory of this machine, which may be in
// a mount of the cluster's tree.
type place struct {
	dir string // absolute, free of symbolic links
	// gone is why dir is not known; nil as a rule.
	gone error
	// outside says that dir is in no tree at all, which takes less to find out than trees does.
	outside bool
	trees   func() (trees, error)
}

// trees is what a place is looked up in.
type trees struct {
	cluster string // the chosen one
	mounts  []mountinfo.Mount
}

// here is the place of this process.
func (a *app) here() (place, error) {
	w := place{trees: sync.OnceValues(a.trees)}
	dir, err := os.Getwd()
	if err != nil {
		w.gone = fmt.Errorf("the working directory is not to be had, it may have been deleted: go to another one, or give whole paths, and -C: %w", err)
		return w, nil
	}
	if w.dir, w.gone = physical(dir); w.gone != nil {
		return w, nil
	}
	if w.outside = !mountinfo.MayBeTree(w.dir); !w.outside {
		_, err = w.trees() // who is in one will ask
	}
	return w, err
}

func (a *app) trees() (trees, error) {
	cfg, err := a.clientConfig()
	if err != nil {
		return trees{}, err
	}
	mounts, err := mountinfo.List()
	return trees{cfg.Cluster, mounts}, err
}

// physical is an absolute path free of symbolic links, as far as it exists. It fails where that cannot be told, as where a mount is dead.
func physical(p string) (string, error) {
	for at, rest := filepath.Clean(p), ""; ; at, rest = filepath.Dir(at), filepath.Join(filepath.Base(at), rest) {
		real, err := filepath.EvalSymlinks(at)
		switch {
		case err == nil:
			return filepath.Join(real, rest), nil
		case errors.Is(err, syscall.ENOTCONN), errors.Is(err, syscall.ECONNABORTED): // fuse(4), of a server that has died
			return "", fmt.Errorf("%s leads into a mount that is dead: mount it again: %w", p, err)
		case filepath.Dir(at) == at:
			return p, nil
		}
	}
}

// answerWithin is how long the file systems of this machine have to tell where a path leads: one of them may be a mount that hangs.
const answerWithin = 10 * time.Second

// answered is what look returns, unless ctx ends or look takes too long; it is left to itself then.
func answered[T any](ctx context.Context, look func() (T, error)) (T, error) {
	type found struct {
		v   T
		err error
	}
	answer := make(chan found, 1)
	go func() {
		v, err := look()
		answer <- found{v, err}
	}()
	var none T
	late := time.NewTimer(answerWithin)
	defer late.Stop()
	select {
	case f := <-answer:
		return f.v, f.err
	case <-ctx.Done():
		return none, context.Cause(ctx)
	case <-late.C:
		return none, fmt.Errorf("a file system that the working directory or a path leads into has not answered within %v: look for a mount that hangs, or go elsewhere and name what is in the tree as %s/PATH", answerWithin, transfer.Prefix)
	}
}

// treeDir is the user's directory as a path in the tree; empty when it is not in
// the tree.
func (w place) treeDir() (string, error) {
	if w.outside || w.gone != nil {
		return "", w.gone
	}
	in, err := w.trees()
	if err != nil {
		return "", err
	}
	if m, ok := mountinfo.Of(in.mounts, w.dir); ok && m.Tree() && m.Cluster() == in.cluster {
		return m.InTree(w.dir), nil
	}
	return "", nil
}

// path is the path in the tree that an argument means: koinon:/PATH, or a path
// of this machine in a mount of the tree.
func (w place) path(arg string) (string, error) {
	const op = sys.Op("path")
	if rest, ok := strings.CutPrefix(arg, transfer.Prefix); ok {
		return path.Join("/", rest), nil
	}
	asked := filepath.Clean(arg)
	if !filepath.IsAbs(arg) {
		if w.gone != nil {
			return "", w.gone
		}
		asked = filepath.Join(w.dir, arg)
	}
	p, err := physical(asked)
	if err != nil {
		return "", err
	}
	in, err := w.trees()
	if err != nil {
		return "", err
	}
	m, ok := mountinfo.Of(in.mounts, p)
	switch {
	case ok && m.Tree() && m.Cluster() == in.cluster:
		return m.InTree(p), nil
	case ok && m.Tree():
		return "", sys.E(op, sys.Invalid, sys.Subject(arg), fmt.Sprintf("that is in the tree of cluster %q, not of %q, which is spoken to: choose the cluster with --config", m.Cluster(), in.cluster))
	}
	if p != asked {
		return "", sys.E(op, sys.Invalid, sys.Subject(arg), fmt.Sprintf("that leads to %s, which is not in the cluster's tree, all that nodes see", p))
	}
	inTree := path.Join("/", arg)
	return "", sys.E(op, sys.Invalid, sys.Subject(arg), fmt.Sprintf("that is not in the cluster's tree, which is all that nodes see: go into a mount of the tree, or write %s%s", transfer.Prefix, inTree))
}
