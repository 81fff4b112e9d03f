//go:build !client

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/koinon/koinon/internal/client"
	"github.com/koinon/koinon/internal/meta/dump"
	"github.com/koinon/koinon/internal/sys"
)

func newMetaCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "meta",
		Short: "Save the tree's metadata, restore it, move it to another engine",
		Long: `The tree's metadata are its names, attributes, the bytes of its small files, and
where the blocks of all others are. A dump holds them all; blocks stay where
they are. A dump is a backup of the metadata, and the way from one engine
(the cluster's own log, MySQL, MariaDB) to another: docs/operating/engines.md.`,
		Args: noSubcommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newMetaDumpCommand(a), newMetaLoadCommand(a))
	return cmd
}

func newMetaDumpCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "dump FILE",
		Short: "Write all metadata to a file",
		Long: `Write the metadata of the whole tree to FILE, or to standard output for "-":
compressed, with checksums, as it is at one moment. The tree may be used
meanwhile; what is changed later is not in the dump. FILE appears when the dump
is complete, and replaces one of that name.

The dump holds the bytes of small files and every name: it is readable by its
owner only.`,
		Example: `  koinon meta dump tree.dump
  koinon meta dump - | ssh backup 'cat > tree.dump'`,
		Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.metaDump(cmd.Context(), args[0]) },
	}
}

func newMetaLoadCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "load FILE",
		Short: "Fill a new tree from a dump",
		Long: `Fill the tree of a new cluster from FILE, or from standard input for "-", or the
engine to which this cluster's metadata moves. Nothing is changed when there is
a tree in which something was ever made, when clients are connected, or when
FILE is damaged. From standard input damage is noticed only on the way.

A load that is interrupted leaves no tree; run it again.

Blocks are not in a dump: they must be on the nodes already. Moving to another
engine step by step: docs/operating/engines.md.`,
		Example: `  koinon meta load tree.dump
  ssh backup 'cat tree.dump' | koinon meta load -`,
		Args: arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.metaLoad(cmd.Context(), args[0]) },
	}
}

// dumpTries is how often a dump to a file starts again when its view is gone.
const dumpTries = 3

func (a *app) metaDump(ctx context.Context, name string) error {
	return a.withClient(ctx, func(ctx context.Context, c *client.Client) error {
		if name == "-" {
			if isTerminal(a.out) {
				return errors.New("a dump is no text for a terminal: send it to a file or a pipe")
			}
			_, err := a.dumpTo(ctx, c, a.out)
			return err
		}
		for n := 1; ; n++ {
			sum, err := a.dumpToFile(ctx, c, name)
			if client.IsViewGone(err) && n < dumpTries {
				a.note("the leader has changed, or its database was away: the dump starts again")
				continue
			}
			if client.IsViewGone(err) {
				err = fmt.Errorf("the leader changed during the dump, or its database was away, %d times in a row: run it again when `koinon status` shows a leader that stays: %w", n, err)
			}
			if err != nil {
				return err
			}
			return a.print(sum, func(w io.Writer) { writeSummary(w, sum) })
		}
	})
}

func writeSummary(w io.Writer, s *dump.Summary) {
	fmt.Fprintf(w, "%d inodes, %d names, %d chunks of cluster %s as of %s\n",
		s.Inodes, s.Entries, s.Chunks, s.Cluster, s.Created().Format("2006-01-02 15:04:05"))
}

func (a *app) dumpTo(ctx context.Context, c *client.Client, w io.Writer) (*dump.Summary, error) {
	bar := a.progress("dumping", -1)
	defer bar.Finish()
	return c.Dump(ctx, io.MultiWriter(w, bar), version(), func(rows uint64) { bar.Describe(fmt.Sprintf("dumping, %d rows", rows)) })
}

// dumpToFile makes the file appear whole or not at all, where a symbolic link leads to.
func (a *app) dumpToFile(ctx context.Context, c *client.Client, name string) (_ *dump.Summary, err error) {
	if st, err := os.Stat(name); err == nil && !st.Mode().IsRegular() {
		return nil, sys.E(sys.Op("meta dump"), sys.Invalid, sys.Subject(name), `not a file: for a pipe give "-"`)
	}
	if to, err := filepath.EvalSymlinks(name); err == nil {
		name = to
	} else if _, err := os.Lstat(name); err == nil {
		return nil, sys.E(sys.Op("meta dump"), sys.Invalid, sys.Subject(name), "a symbolic link that leads nowhere: name the file itself")
	}
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*") // mode 0600
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), os.Remove(f.Name()))
		}
	}()
	sum, err := a.dumpTo(ctx, c, f)
	if err != nil {
		return nil, err
	}
	if err := f.Sync(); err != nil {
		return nil, err
	}
	if err := os.Rename(f.Name(), name); err != nil {
		return nil, err
	}
	return sum, f.Close()
}

func (a *app) metaLoad(ctx context.Context, name string) error {
	cfg, err := a.clientConfig()
	if err != nil {
		return err
	}
	in, size := a.in, int64(-1)
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }() // it was only read
		st, err := f.Stat()
		if err != nil {
			return err
		}
		if size = st.Size(); !st.Mode().IsRegular() {
			return sys.E(sys.Op("meta load"), sys.Invalid, sys.Subject(name), `not a file: for a pipe give "-"`)
		}
		if err := a.verifyDump(f, size); err != nil {
			return sys.E(sys.Op("meta load"), sys.Subject(name), fmt.Errorf("%w; nothing was changed", err))
		}
		in = f
	}
	admin, err := client.ConnectAdmin(ctx, cfg, a.logger())
	if err != nil {
		return err
	}
	defer func() { _ = admin.Close() }() // there is nothing to lose
	bar := a.progress("loading", size)
	sum, err := admin.LoadDump(ctx, io.TeeReader(in, bar))
	bar.Finish()
	if err != nil {
		return err
	}
	return a.print(sum, func(w io.Writer) { writeSummary(w, sum) })
}

// verifyDump reads a dump through and goes back to its start.
func (a *app) verifyDump(f *os.File, size int64) error {
	bar := a.progress("verifying", size)
	defer bar.Finish()
	if _, err := dump.Verify(io.TeeReader(f, bar)); err != nil {
		return err
	}
	_, err := f.Seek(0, io.SeekStart)
	return err
}
