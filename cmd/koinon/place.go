package main

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"

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
	w.dir = physical(dir)
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

// physical is an absolute path free of symbolic links, as far as it exists.
func physical(p string) string {
	for at, rest := filepath.Clean(p), ""; ; at, rest = filepath.Dir(at), filepath.Join(filepath.Base(at), rest) {
		if real, err := filepath.EvalSymlinks(at); err == nil {
			return filepath.Join(real, rest)
		}
		if filepath.Dir(at) == at {
			return p
		}
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
	p := arg
	if !filepath.IsAbs(p) {
		if w.gone != nil {
			return "", w.gone
		}
		p = filepath.Join(w.dir, p)
	}
	p = physical(p)
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
	inTree := path.Join("/", arg)
	return "", sys.E(op, sys.Invalid, sys.Subject(arg), fmt.Sprintf("that is not in the cluster's tree, which is all that nodes see: go into a mount of the tree, or write %s%s", transfer.Prefix, inTree))
}
