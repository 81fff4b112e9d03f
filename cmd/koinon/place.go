package main

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/koinon/koinon/cmd/koinon/internal/transfer"
	"github.com/koinon/koinon/internal/mountinfo"
	"github.com/koinon/koinon/internal/sys"
)

// place is where the user stands: a directory of this machine, which may be in
// a mount of the cluster's tree.
type place struct {
	cluster string
	dir     string // absolute, free of symbolic links
	mounts  []mountinfo.Mount
}

// here is the place of this process, for the chosen cluster.
func (a *app) here() (place, error) {
	cfg, err := a.clientConfig()
	if err != nil {
		return place{}, err
	}
	mounts, err := mountinfo.List()
	if err != nil {
		return place{}, err
	}
	dir, err := os.Getwd()
	if err != nil {
		return place{}, err
	}
	return place{cluster: cfg.Cluster, dir: physical(dir), mounts: mounts}, nil
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
func (w place) treeDir() string {
	if m, ok := mountinfo.Of(w.mounts, w.dir); ok && m.Tree() && m.Cluster() == w.cluster {
		return m.InTree(w.dir)
	}
	return ""
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
		p = filepath.Join(w.dir, p)
	}
	p = physical(p)
	m, ok := mountinfo.Of(w.mounts, p)
	switch {
	case ok && m.Tree() && m.Cluster() == w.cluster:
		return m.InTree(p), nil
	case ok && m.Tree():
		return "", sys.E(op, sys.Invalid, sys.Subject(arg), fmt.Sprintf("that is in the tree of cluster %q, not of %q, which is spoken to: choose the cluster with --config", m.Cluster(), w.cluster))
	}
	inTree := arg
	if !strings.HasPrefix(inTree, "/") {
		inTree = "/" + inTree
	}
	return "", sys.E(op, sys.Invalid, sys.Subject(arg), fmt.Sprintf("that is not in the cluster's tree, which is all that nodes see: go into a mount of the tree, or write %s%s", transfer.Prefix, inTree))
}
