package koinon

import (
	"context"
	"io/fs"
)

// treeFS is the tree as io/fs sees it.
type treeFS struct {
	c   *Client
	ctx context.Context
}

var (
	_ fs.ReadDirFS  = treeFS{}
	_ fs.StatFS     = treeFS{}
	_ fs.ReadFileFS = treeFS{}
	_ fs.ReadLinkFS = treeFS{}
)

// FS returns the tree as an fs.FS that is also an fs.ReadDirFS, fs.StatFS,
// fs.ReadFileFS and fs.ReadLinkFS.
func (c *Client) FS() fs.FS { return c.FSContext(context.Background()) }

// FSContext is FS whose operations end with ctx.
func (c *Client) FSContext(ctx context.Context) fs.FS { return treeFS{c: c, ctx: ctx} }

func valid(op, name string) error {
	if !fs.ValidPath(name) {
		return &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid}
	}
	return nil
}

// Open implements fs.FS.
func (t treeFS) Open(name string) (fs.File, error) {
	if err := valid("open", name); err != nil {
		return nil, err
	}
	f, err := t.c.Open(t.ctx, name)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// ReadDir implements fs.ReadDirFS.
func (t treeFS) ReadDir(name string) ([]fs.DirEntry, error) {
	if err := valid("readdir", name); err != nil {
		return nil, err
	}
	infos, err := t.c.ReadDir(t.ctx, name)
	if err != nil {
		return nil, err
	}
	entries := make([]fs.DirEntry, len(infos))
	for i, info := range infos {
		entries[i] = info
	}
	return entries, nil
}

// Stat implements fs.StatFS.
func (t treeFS) Stat(name string) (fs.FileInfo, error) {
	if err := valid("stat", name); err != nil {
		return nil, err
	}
	info, err := t.c.Stat(t.ctx, name)
	if err != nil {
		return nil, err
	}
	return info, nil
}

// Lstat implements fs.ReadLinkFS.
func (t treeFS) Lstat(name string) (fs.FileInfo, error) {
	if err := valid("lstat", name); err != nil {
		return nil, err
	}
	info, err := t.c.Lstat(t.ctx, name)
	if err != nil {
		return nil, err
	}
	return info, nil
}

// ReadLink implements fs.ReadLinkFS.
func (t treeFS) ReadLink(name string) (string, error) {
	if err := valid("readlink", name); err != nil {
		return "", err
	}
	return t.c.ReadLink(t.ctx, name)
}

// ReadFile implements fs.ReadFileFS.
func (t treeFS) ReadFile(name string) ([]byte, error) {
	if err := valid("readfile", name); err != nil {
		return nil, err
	}
	return t.c.ReadFile(t.ctx, name)
}
