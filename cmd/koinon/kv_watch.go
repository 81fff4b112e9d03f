package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/koinon/koinon"
	"github.com/koinon/koinon/internal/sys"
)

// watchFlags are those of kv watch.
type watchFlags struct {
	opt      koinon.WatchOptions
	limit    int
	progress bool
}

func newKVWatchCommand(k *kvApp) *cobra.Command {
	var f watchFlags
	cmd := &cobra.Command{
		Use:   "watch KEY",
		Short: "Show changes as they happen",
		Long: `Show the changes of a key, or of all keys that begin with it, in the order of
their revisions: each once, with no gap, whichever node leads meanwhile. It ends
when it is interrupted, or after --limit changes.

Each line is the revision, put or delete, the key, and the value. With -o json
each change is a line of JSON; --progress adds lines that say up to which
revision everything has been shown. To go on later where a watch ended, give
--from the next revision: history is kept for the last 100,000 revisions, or
fewer when they hold more than 64 MiB.`,
		Example: "  koinon kv watch /app/leader\n  koinon kv watch --prefix /app/ --from 1200\n  koinon kv watch --prefix \"\" --progress -o json",
		Args:    arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f.opt.Key = args[0]
			if f.opt.Key == "" && !f.opt.Prefix {
				return &usageError{cmd: cmd.CommandPath(), err: errors.New("the key is empty: give --prefix to watch all keys")}
			}
			if f.limit < 0 {
				return &usageError{cmd: cmd.CommandPath(), err: errors.New("--limit is negative")}
			}
			return k.run(cmd.Context(), func(ctx context.Context, kv *koinon.KV) error { return k.watch(ctx, kv, f) })
		},
	}
	cmd.Flags().BoolVar(&f.opt.Prefix, "prefix", false, "all keys that begin with KEY")
	cmd.Flags().Uint64Var(&f.opt.From, "from", 0, "begin with the changes of `REVISION`; 0 is from now on")
	cmd.Flags().IntVar(&f.limit, "limit", 0, "end after `N` changes; 0 is never")
	cmd.Flags().BoolVar(&f.progress, "progress", false, "tell also how far it has come")
	return cmd
}

func (k *kvApp) watch(ctx context.Context, kv *koinon.KV, f watchFlags) error {
	if f.opt.From > 0 {
		k.tellAhead(ctx, kv, f.opt)
	}
	w := kv.Watch(f.opt)
	for shownEvents := 0; ; {
		events, err := w.Next(ctx)
		switch {
		case sys.Is(err, sys.Unavailable) && ctx.Err() == nil:
			k.note("still waiting: %v", err)
			continue
		case err != nil:
			return kvError("watch", f.opt.Key, err)
		}
		for _, e := range events {
			if err := k.event(e); err != nil {
				return err
			}
			if shownEvents++; shownEvents == f.limit {
				return nil
			}
		}
		if f.progress {
			if err := k.reached(w.Revision()); err != nil {
				return err
			}
		}
	}
}

// tellAhead says when a watch begins with a revision that has not come yet. Why that is not to be had the watch tells.
func (k *kvApp) tellAhead(ctx context.Context, kv *koinon.KV, opt koinon.WatchOptions) {
	page, err := kv.List(ctx, koinon.ListOptions{Prefix: opt.Key, KeysOnly: true, Limit: 1})
	if err == nil && opt.From > page.Revision+1 {
		k.note("waiting for revision %d, the newest is %d", opt.From, page.Revision)
	}
}

func (k *kvApp) event(e koinon.Event) error {
	out := newKVEntry(e.Entry)
	out.Type = "put"
	if e.Deleted {
		out.Type, out.Value = "delete", nil
	}
	if k.json() {
		return k.line(out)
	}
	text := fmt.Sprintf("%d %s %s", e.Revision, out.Type, shown(e.Key))
	if !e.Deleted {
		text += " " + shown(string(e.Value))
	}
	_, err := fmt.Fprintln(k.out, text)
	return err
}

func (k *kvApp) reached(revision uint64) error {
	if k.json() {
		return k.line(struct {
			Type     string `json:"type"`
			Revision uint64 `json:"revision"`
		}{"progress", revision})
	}
	_, err := fmt.Fprintf(k.out, "%d progress\n", revision)
	return err
}
