package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/koinon/koinon"
	"github.com/koinon/koinon/cmd/koinon/internal/transfer"
)

const cpLong = `Copy files and directories between this machine and the tree, or within the
tree. A path that begins with koinon: is in the tree; anything else is on this
machine (write ./koinon:x for a file that is called so).

A file appears under its name when it is whole: Ctrl-C leaves no half file. A
file that cannot be copied is told and left out, and the exit code is 1.

Hard links become files of their own, holes become zeroes, and extended
attributes stay behind: where they count, copy in a mount with cp -a or rsync.`

const cpExample = `  koinon cp -r ./photos koinon:/          into the tree
  koinon cp -r koinon:/photos ./back      and back
  koinon cp koinon:/a koinon:/b           within the tree`

func newCpCommand(t *treeApp) *cobra.Command {
	var opt transfer.Options
	cmd := &cobra.Command{
		Use:     "cp [-r] [-p] SOURCE... TARGET",
		Short:   "Copy to, from and within the tree",
		Long:    cpLong,
		Example: cpExample,
		Args: func(cmd *cobra.Command, args []string) error {
			if err := arguments(2, -1)(cmd, args); err != nil {
				return err
			}
			_, _, err := cpArguments(args)
			return err
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			from, to, err := cpArguments(args)
			if err != nil {
				return err
			}
			return t.run(cmd.Context(), func(ctx context.Context, c *koinon.Client) error {
				opt.Client, opt.Umask = c, umask()
				if opt.Recursive {
					opt.InTree = t.inTree()
				}
				return t.copy(ctx, from, to, opt)
			})
		},
	}
	flags := cmd.Flags()
	flags.BoolVarP(&opt.Recursive, "recursive", "r", false, "directories too; symbolic links are kept as links")
	flags.BoolVarP(&opt.Preserve, "preserve", "p", false, "keep mode, times and, for root, the owner")
	flags.IntVar(&opt.Workers, "workers", 16, "copy so many files at once")
	return cmd
}

// cpArguments tells sources and target, and refuses what is not for us.
func cpArguments(args []string) (from []transfer.Location, to transfer.Location, err error) {
	for _, a := range args {
		if a == "" {
			return nil, to, errors.New("a path is empty")
		}
		from = append(from, transfer.Parse(a))
	}
	from, to = from[:len(from)-1], from[len(from)-1]
	if to.Tree {
		return from, to, nil
	}
	for _, f := range from {
		if !f.Tree {
			return nil, to, fmt.Errorf("neither %s nor %s is in the tree: write koinon:/path for what is, or use cp(1)", f, to)
		}
	}
	return from, to, nil
}

// inTree tells of paths of this machine that are in a mount of the cluster's tree; nil when that cannot be told.
func (t *treeApp) inTree() func(string) (string, bool) {
	at, err := t.here()
	if err != nil {
		return nil
	}
	return func(p string) (string, bool) {
		inTree, err := at.path(p)
		return inTree, err == nil
	}
}

func (t *treeApp) copy(ctx context.Context, from []transfer.Location, to transfer.Location, opt transfer.Options) error {
	show := t.showCopy(ctx, from, &opt)
	var mu sync.Mutex
	opt.Failed = func(err error) {
		mu.Lock()
		defer mu.Unlock()
		t.complain(err)
	}
	began := time.Now()
	st, err := transfer.Copy(ctx, from, to, opt)
	show.finish()
	switch {
	case ctx.Err() != nil:
		t.note("koinon: stopped: %d files were copied, none in part", st.Files)
		return err
	case t.json():
		type stats struct {
			Files   int64   `json:"files"`
			Dirs    int64   `json:"dirs"`
			Links   int64   `json:"links"`
			Bytes   int64   `json:"bytes"`
			Failed  int64   `json:"failed"`
			Seconds float64 `json:"seconds"`
		}
		took := time.Since(began).Seconds()
		return errors.Join(err, t.print(stats{st.Files, st.Dirs, st.Links, st.Bytes, st.Failed, took}, nil))
	case isTerminal(t.err) && st.Files+st.Dirs+st.Links > 1:
		took := time.Since(began)
		t.note("%d files, %s in %s", st.Files+st.Links, byteSize(uint64(st.Bytes)), took.Round(10*time.Millisecond))
	}
	return err
}

// copyShow is the progress bar of a copy and what feeds it.
type copyShow struct {
	bar    *progress
	files  atomic.Int64
	cancel context.CancelFunc
	tasks  sync.WaitGroup
}

// showCopy starts a progress bar on a terminal. How much there is to copy is
// found out while the copy runs.
func (t *treeApp) showCopy(ctx context.Context, from []transfer.Location, opt *transfer.Options) *copyShow {
	s := &copyShow{bar: t.progress("copying", -1)}
	if !s.bar.shown() {
		return s
	}
	ctx, s.cancel = context.WithCancel(ctx)
	opt.Moved = s.bar.Add
	opt.Finished = func() { s.files.Add(1) }
	var total atomic.Int64
	measured := *opt
	s.tasks.Go(func() {
		files, bytes := transfer.Measure(ctx, from, measured)
		if ctx.Err() == nil && bytes > 0 {
			total.Store(files)
			s.bar.Total(bytes)
		}
	})
	s.tasks.Go(func() {
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				s.bar.Describe(copyWords(s.files.Load(), total.Load()))
			}
		}
	})
	return s
}

func copyWords(files, total int64) string {
	if total > 0 {
		return fmt.Sprintf("copying, %d of %d files", files, total)
	}
	return fmt.Sprintf("copying, %d files", files)
}

func (s *copyShow) finish() {
	if s.cancel != nil {
		s.cancel()
		s.tasks.Wait()
	}
	s.bar.Finish()
}
