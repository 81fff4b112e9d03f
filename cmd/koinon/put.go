package main

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"path"

	"github.com/spf13/cobra"

	"github.com/koinon/koinon"
)

func newPutCommand(t *treeApp) *cobra.Command {
	return &cobra.Command{
		Use:   "put PATH",
		Short: "Write standard input to a file, whole or not at all",
		Long: `Write standard input to a file. The file gets its name when all of it is on
stable storage; until then, and when the input breaks off, what was there
before stays.`,
		Example: "  pg_dump mydb | koinon put /backup/mydb.sql",
		Args:    arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return t.run(cmd.Context(), func(ctx context.Context, c *koinon.Client) error {
				p := treePath(args[0])
				return treeError("write", p, t.put(ctx, c, p),
					hint{isDirError, "name a file in it"}, hint{fs.ErrNotExist, "make the directory with `koinon mkdir -p " + quoted(path.Dir(p)) + "`"})
			})
		},
	}
}

func (t *treeApp) put(ctx context.Context, c *koinon.Client, p string) error {
	r, err := c.Replace(ctx, p, 0o666&^umask())
	if err != nil {
		return err
	}
	r.Sync()
	bar := t.progress("writing", -1)
	in := interruptible(ctx, t.in)
	_, err = r.ReadFrom(io.TeeReader(in, bar))
	bar.Finish()
	// Whoever still reads the input must not hold its writer up.
	if err = errors.Join(err, in.Close()); err != nil {
		return errors.Join(err, r.Abort())
	}
	return r.Commit()
}

// interruptible returns a reader of in that fails when ctx ends, even while in
// has nothing to give. The goroutine behind it ends with the input, or with its
// next bytes after Close; one that waits for a terminal ends with the process.
func interruptible(ctx context.Context, in io.Reader) io.ReadCloser {
	pr, pw := io.Pipe()
	go func() {
		const unit = 256 << 10
		_, err := io.CopyBuffer(struct{ io.Writer }{pw}, struct{ io.Reader }{in}, make([]byte, unit))
		pw.CloseWithError(err) // nil is io.EOF; it always returns nil
	}()
	stop := context.AfterFunc(ctx, func() { pw.CloseWithError(context.Cause(ctx)) })
	return &stoppable{PipeReader: pr, stop: stop}
}

type stoppable struct {
	*io.PipeReader
	stop func() bool
}

// Close ends the reader.
func (s *stoppable) Close() error {
	s.stop()
	return s.PipeReader.Close()
}
