package main

import (
	"context"
	"fmt"
	"io/fs"
	"path"
	"sync"

	"github.com/spf13/cobra"

	"github.com/koinon/koinon"
)

// duEntry is a directory, or a file that was named, as -o json prints it.
type duEntry struct {
	Path  string `json:"path"`
	Bytes int64  `json:"bytes"` // sum of the lengths
	Files int64  `json:"files"` // everything but directories
	Dirs  int64  `json:"dirs"`  // itself included
}

// usage is one run of du.
type usage struct {
	*treeApp
	summary, human bool
	slots          chan struct{} // a token for each goroutine

	mu      sync.Mutex
	seen    map[uint64]bool // inodes with several names, counted once
	entries []duEntry       // for -o json
	failed  bool
}

// duWorkers is how many directories are read at once.
const duWorkers = 16

func newDuCommand(t *treeApp) *cobra.Command {
	u := &usage{treeApp: t}
	cmd := &cobra.Command{
		Use:   "du [-s] [-h] [PATH...]",
		Short: "Sum up the sizes below directories",
		Long: `Sum up the lengths of all files below each directory, in KiB. One copy of the
bytes is counted, and a file with several names once.`,
		Example: "  koinon du -sh /photos",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				args = []string{"/"}
			}
			u.slots, u.seen, u.entries = make(chan struct{}, duWorkers-1), map[uint64]bool{}, []duEntry{}
			return t.run(cmd.Context(), func(ctx context.Context, c *koinon.Client) error { return u.all(ctx, c, args) })
		},
	}
	cmd.Flags().BoolVarP(&u.summary, "summarize", "s", false, "one sum for each PATH")
	human(cmd, &u.human)
	return cmd
}

func (u *usage) all(ctx context.Context, c *koinon.Client, args []string) error {
	err := u.each(ctx, args, func(arg string) error {
		p := treePath(arg)
		info, err := c.Lstat(ctx, p)
		if err != nil {
			return treeError("sum up", p, err)
		}
		if !info.IsDir() {
			u.tell([]duEntry{{Path: p, Bytes: u.bytes(info), Files: 1}})
			return nil
		}
		d, err := c.OpenDir(ctx, p)
		if err != nil {
			return treeError("sum up", p, err)
		}
		sum, below := u.dir(ctx, d)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if u.summary {
			below = nil
		}
		u.tell(append(below, sum))
		return nil
	})
	if u.json() {
		if perr := u.print(u.entries, nil); perr != nil {
			return perr
		}
	}
	if err == nil && u.failed {
		err = &exitError{code: 1}
	}
	return err
}

func (u *usage) tell(entries []duEntry) {
	u.entries = append(u.entries, entries...)
	if u.json() {
		return
	}
	for _, e := range entries {
		size := fmt.Sprint((e.Bytes + 1023) / 1024)
		if u.human {
			size = byteSize(uint64(e.Bytes))
		}
		fmt.Fprintf(u.out, "%s\t%s\n", size, e.Path)
	}
}

// bytes is the length of what is no directory, 0 when it was counted under
// another name.
func (u *usage) bytes(info *koinon.Info) int64 {
	if info.Links() > 1 {
		u.mu.Lock()
		defer u.mu.Unlock()
		if u.seen[info.Ino()] {
			return 0
		}
		u.seen[info.Ino()] = true
	}
	return info.Size()
}

// dir sums up a directory and returns the sums of those below it as well, each
// after what it holds. Directories below are read in as many goroutines as
// there are free slots, else in its own.
func (u *usage) dir(ctx context.Context, d *koinon.Dir) (duEntry, []duEntry) {
	sum := duEntry{Path: d.Path(), Dirs: 1}
	infos, err := d.List(ctx)
	if err != nil {
		u.trouble(ctx, treeError("list", d.Path(), err))
		return sum, nil
	}
	type part struct {
		sum   duEntry
		below []duEntry
	}
	parts := make([]part, 0, len(infos))
	var subs []*koinon.Dir
	for _, info := range infos {
		if info.Mode().Type() == fs.ModeDir {
			subs = append(subs, d.Sub(info))
			parts = append(parts, part{})
			continue
		}
		sum.Files++
		sum.Bytes += u.bytes(info)
	}
	var wg sync.WaitGroup
	for i, sub := range subs {
		if ctx.Err() != nil {
			break
		}
		select {
		case u.slots <- struct{}{}:
			wg.Go(func() {
				defer func() { <-u.slots }()
				parts[i].sum, parts[i].below = u.dir(ctx, sub)
			})
		default:
			parts[i].sum, parts[i].below = u.dir(ctx, sub)
		}
	}
	wg.Wait()
	var below []duEntry
	for _, p := range parts {
		sum.Bytes, sum.Files, sum.Dirs = sum.Bytes+p.sum.Bytes, sum.Files+p.sum.Files, sum.Dirs+p.sum.Dirs
		if !u.summary {
			below = append(append(below, p.below...), p.sum)
		}
	}
	sum.Path = path.Clean(sum.Path)
	return sum, below
}

func (u *usage) trouble(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.failed = true
	u.complain(err)
}
