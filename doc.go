// Package koinon is the Go client of a Koinon cluster: Client is its file tree,
// without a mount; KV its keys with revisions, with Watch, Session and Lock; Procs
// its process table.
//
//	c, err := koinon.Open(ctx, koinon.Options{})
//	...
//	defer c.Close(ctx)
//	err = c.WriteFile(ctx, "/notes/today", data, 0o644)
//	data, err := fs.ReadFile(c.FS(), "notes/today")
//
//	kv, err := koinon.OpenKV(ctx, koinon.Options{})
//	...
//	defer kv.Close(ctx)
//	lock, err := kv.Lock(ctx, "nightly", koinon.LockOptions{})
//	...
//	defer lock.Unlock(ctx)
//
//	procs, err := koinon.OpenProcs(ctx, koinon.Options{})
//	...
//	defer procs.Close(ctx)
//	id, err := procs.Submit(ctx, koinon.JobSpec{Command: []string{"make"}})
//
// # Paths
//
// Paths of Client start at the root of the tree, with or without a leading
// slash; they are bytes, of names of at most 255. FS takes the paths of io/fs.
//
// # Errors
//
// Errors are *fs.PathError or *os.LinkError around a cause that answers
// errors.Is for the errors of io/fs (fs.ErrNotExist, fs.ErrExist,
// fs.ErrPermission, fs.ErrInvalid) and for the errno that a mount would give
// (syscall.ENOTEMPTY and so on).
//
// # What is durable
//
// Every change of the tree is agreed on by a majority before it returns. Bytes
// written to a File are agreed on when Close or Sync returns without an error,
// and are on stable storage on a write quorum of nodes when Sync does.
// WriteFile syncs.
//
// # Whose rights
//
// A Client acts with the user, group and groups of its process, as a mount
// does for the programs that use it. Modes are taken as given: no umask is
// applied.
package koinon
