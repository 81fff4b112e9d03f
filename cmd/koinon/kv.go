package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/koinon/koinon"
)

// The exit codes of koinon kv beside the usual ones.
const (
	codeMismatch = 3
	codeUnknown  = 4
)

const kvLong = `Keys with revisions, agreed on by the cluster: for configuration, for who does
what, for telling others. Every change gets the next revision, one for all keys;
reads show everything that was acknowledged before.

A key is up to 4 KiB of any bytes, a value up to 1 MiB. Larger things belong in
the tree, their path in a key. Keys are not paths: a prefix is just how a key
begins. Keys that go away with a program, and transactions over several keys,
are there for Go programs (package koinon: Session, Txn); koinon lock holds
locks for any program.

Exit codes: 1 no such key, or an error; 2 a wrong command line; 3 (cas) the key
is not as expected; 4 no answer came, so it is not known whether the change
takes effect: look before you try again.`

const kvExample = `  koinon kv put /app/leader db-3             set a key
  koinon kv get /app/leader                  read it
  koinon kv cas /app/leader db-4 --if-value db-3
  koinon kv ls /app/                         keys that begin with /app/
  koinon kv watch --prefix /app/             what changes, as it changes
  koinon lock nightly -- ./backup.sh         one at a time, on any machine`

// kvOpener opens the coordination service that a command works on.
type kvOpener func(ctx context.Context) (*koinon.KV, error)

// openKV opens that of the chosen cluster.
func (a *app) openKV(ctx context.Context) (*koinon.KV, error) {
	return koinon.OpenKV(ctx, koinon.Options{Config: a.configPath, Logger: a.logger()})
}

// kvApp is an app with a coordination service.
type kvApp struct {
	*app
	open kvOpener
}

func newKVCommand(a *app) *cobra.Command {
	k := &kvApp{app: a, open: a.openKV}
	cmd := &cobra.Command{
		Use: "kv", Short: "Keys and values that all machines agree on", Long: kvLong, Example: kvExample,
		Args: noSubcommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newKVGetCommand(k), newKVPutCommand(k), newKVCasCommand(k), newKVRmCommand(k), newKVLsCommand(k), newKVWatchCommand(k))
	return cmd
}

// run opens the service, lets do work on it, and leaves it in order even when
// the user interrupts.
func (k *kvApp) run(ctx context.Context, do func(ctx context.Context, kv *koinon.KV) error) error {
	kv, err := k.open(ctx)
	if err != nil {
		return err
	}
	err = do(ctx, kv)
	patience := closeTimeout
	if err != nil {
		patience = lostTimeout // perhaps nobody is there
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	if cerr := kv.Close(ctx); cerr != nil && err == nil {
		k.logger().Debug("leaving the cluster", "err", cerr) // what was done is done
	}
	return err
}

// kvError says what could not be done to which key, with the exit code for it.
func kvError(what, key string, err error) error {
	if err == nil {
		return nil
	}
	told := fmt.Errorf("cannot %s key %s: %w", what, shown(key), err)
	switch {
	case errors.Is(err, koinon.ErrUnknown):
		return &exitError{code: codeUnknown, err: told}
	case errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, koinon.ErrMismatch):
		return &exitError{code: codeMismatch, err: fmt.Errorf("cannot %s: %w", what, err)}
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("there is no key %s", shown(key))
	}
	return told
}

// value is an argument's, or what standard input holds for "-".
func (k *kvApp) value(ctx context.Context, arg string) ([]byte, error) {
	if arg != "-" {
		return []byte(arg), nil
	}
	in := interruptible(ctx, k.in)
	raw, err := io.ReadAll(io.LimitReader(in, koinon.ValueMax+1))
	if err = errors.Join(err, in.Close()); err != nil {
		return nil, err
	}
	if len(raw) > koinon.ValueMax {
		return nil, fmt.Errorf("standard input holds more than %d bytes, the most a value has: keep it in a file of the tree (koinon put) and the file's path in the key", koinon.ValueMax)
	}
	return raw, nil
}

// kvEntry is a key as -o json prints it. What is not UTF-8 is in base64.
type kvEntry struct {
	Type        string  `json:"type,omitempty"` // of an event: put or delete
	Key         string  `json:"key"`
	KeyBase64   string  `json:"key_base64,omitempty"`
	Value       *string `json:"value,omitempty"`
	ValueBase64 string  `json:"value_base64,omitempty"`
	Revision    uint64  `json:"revision"`
	Created     uint64  `json:"created_revision,omitempty"`
	Version     uint64  `json:"version,omitempty"`
	Size        int     `json:"size"`
	Session     uint64  `json:"session,omitempty"`
}

func newKVEntry(e koinon.Entry) kvEntry {
	out := kvEntry{Key: e.Key, Revision: e.Revision, Created: e.Created, Version: e.Version, Size: e.Size, Session: e.Session}
	if !utf8.ValidString(e.Key) {
		out.KeyBase64 = base64.StdEncoding.EncodeToString([]byte(e.Key))
	}
	switch v := string(e.Value); {
	case len(e.Value) != e.Size: // only keys were asked for
	case utf8.ValidString(v):
		out.Value = &v
	default:
		out.ValueBase64 = base64.StdEncoding.EncodeToString(e.Value)
	}
	return out
}

// line prints one value as a line of JSON.
func (k *kvApp) line(v any) error {
	enc := json.NewEncoder(k.out)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// changed tells the revision of a key that was set, with the size of its value.
func (k *kvApp) changed(key string, size int, revision uint64) error {
	out := newKVEntry(koinon.Entry{Key: key, Size: size, Revision: revision})
	out.Value = nil // whoever set it has it
	return k.print(out, func(w io.Writer) { row(w, fmt.Sprint("revision ", revision)) })
}

func newKVGetCommand(k *kvApp) *cobra.Command {
	var opt koinon.ReadOptions
	cmd := &cobra.Command{
		Use:   "get KEY",
		Short: "Print the value of a key",
		Long: `Print the value of a key, byte for byte. On a terminal a newline follows.
With -o json its revisions are told as well: of its last change, and since which
it has been there; version counts its changes since then.

A past revision can be read for as long as history is kept: the last 100,000
revisions, or fewer when they hold more than 64 MiB.`,
		Example: "  koinon kv get /app/leader\n  koinon kv get /app/leader --rev 1200\n  koinon kv get /app/leader -o json",
		Args:    arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return k.run(cmd.Context(), func(ctx context.Context, kv *koinon.KV) error {
				e, err := kv.Get(ctx, args[0], opt)
				if err != nil {
					return kvError("read", args[0], err)
				}
				if k.json() {
					return k.print(newKVEntry(e), nil)
				}
				if isTerminal(k.out) && !strings.HasSuffix(string(e.Value), "\n") {
					e.Value = append(e.Value, '\n')
				}
				_, err = k.out.Write(e.Value)
				return err
			})
		},
	}
	readFlags(cmd, &opt)
	return cmd
}

func readFlags(cmd *cobra.Command, opt *koinon.ReadOptions) {
	cmd.Flags().Uint64Var(&opt.Revision, "rev", 0, "as it was at `REVISION`")
	cmd.Flags().BoolVar(&opt.Stale, "stale", false, "from any node, which may be behind: needs no majority")
}

func newKVPutCommand(k *kvApp) *cobra.Command {
	return &cobra.Command{
		Use:   "put KEY VALUE|-",
		Short: "Set a key to a value, or to standard input",
		Example: "  koinon kv put /app/leader db-3\n  koinon kv put /app/config - < config.toml\n" +
			"  koinon kv put /app/offset -- -5            a value that begins with a dash",
		Args: arguments(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			value, err := k.value(cmd.Context(), args[1])
			if err != nil {
				return err
			}
			return k.run(cmd.Context(), func(ctx context.Context, kv *koinon.KV) error {
				revision, err := kv.Put(ctx, args[0], value)
				if err != nil {
					return kvError("set", args[0], err)
				}
				return k.changed(args[0], len(value), revision)
			})
		},
	}
}

func newKVCasCommand(k *kvApp) *cobra.Command {
	var ifValue string
	var ifRevision uint64
	var ifAbsent bool
	cmd := &cobra.Command{
		Use:   "cas KEY VALUE|- (--if-value V | --if-revision N | --if-absent)",
		Short: "Set a key only if it is as expected",
		Long: `Set a key only if it is as expected, in one step: of many who try it at the
same time, one succeeds. The exit code is 3 when the key is not as expected; it
is left as it is then.`,
		Example: "  koinon kv cas /app/leader db-4 --if-value db-3\n  koinon kv cas /app/leader db-1 --if-absent\n" +
			"  rev=$(koinon kv get /app/n -o json | jq .revision)\n  koinon kv cas /app/n 8 --if-revision $rev",
		Args: func(cmd *cobra.Command, args []string) error {
			given := 0
			for _, name := range []string{"if-value", "if-revision", "if-absent"} {
				if cmd.Flags().Changed(name) {
					given++
				}
			}
			if given != 1 || cmd.Flags().Changed("if-absent") && !ifAbsent {
				return errors.New("expected one of --if-value, --if-revision and --if-absent")
			}
			return arguments(2, 2)(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			value, err := k.value(cmd.Context(), args[1])
			if err != nil {
				return err
			}
			want := koinon.Absent(args[0])
			switch {
			case cmd.Flags().Changed("if-value"):
				want = koinon.HasValue(args[0], []byte(ifValue))
			case !ifAbsent:
				want = koinon.AtRevision(args[0], ifRevision)
			}
			return k.run(cmd.Context(), func(ctx context.Context, kv *koinon.KV) error {
				revision, err := kv.Commit(ctx, koinon.Txn{If: []koinon.Condition{want}, Then: []koinon.Change{koinon.Put(args[0], value)}})
				if err != nil {
					return kvError("set", args[0], err)
				}
				return k.changed(args[0], len(value), revision)
			})
		},
	}
	cmd.Flags().StringVar(&ifValue, "if-value", "", "if this is its `VALUE`")
	cmd.Flags().Uint64Var(&ifRevision, "if-revision", 0, "if its last change is that of `REVISION`")
	cmd.Flags().BoolVar(&ifAbsent, "if-absent", false, "if it is not there")
	return cmd
}

func newKVRmCommand(k *kvApp) *cobra.Command {
	var prefix, all bool
	cmd := &cobra.Command{
		Use:   "rm KEY... | rm --prefix PREFIX... | rm --all",
		Short: "Remove keys",
		Long: `Remove keys. With --prefix all keys that begin so are removed, in several steps
when there are many; keys that come meanwhile may stay. With --all that is every key.`,
		Example: "  koinon kv rm /app/leader\n  koinon kv rm --prefix /app/",
		Args: func(cmd *cobra.Command, args []string) error {
			switch {
			case all:
				return arguments(0, 0)(cmd, args)
			case prefix && slices.Contains(args, ""):
				return errors.New("an empty prefix is that of every key, and often a variable that is not set: koinon kv rm --all removes every key")
			}
			return arguments(1, -1)(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if all {
				prefix, args = true, []string{""}
			}
			return k.run(cmd.Context(), func(ctx context.Context, kv *koinon.KV) error {
				for _, arg := range args {
					if prefix {
						if err := k.removeAll(ctx, kv, arg); err != nil {
							return kvError("remove", arg, err)
						}
					} else if _, err := kv.Delete(ctx, arg); err != nil {
						return kvError("remove", arg, err)
					}
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&prefix, "prefix", false, "all keys that begin with it")
	cmd.Flags().BoolVar(&all, "all", false, "every key")
	return cmd
}

// removeAll removes the keys with a prefix, as many at a time as a transaction
// holds. Pages of one revision end even when keys are added all the time.
func (k *kvApp) removeAll(ctx context.Context, kv *koinon.KV, prefix string) error {
	opt := koinon.ListOptions{Prefix: prefix, KeysOnly: true, Limit: koinon.ChangesMax}
	for removed := 0; ; {
		page, err := kv.List(ctx, opt)
		if err != nil {
			return err
		}
		var t koinon.Txn
		for _, e := range page.Entries {
			t.Then = append(t.Then, koinon.Delete(e.Key))
		}
		if len(t.Then) > 0 {
			if _, err := kv.Commit(ctx, t); err != nil {
				return err
			}
		}
		removed += len(t.Then)
		if opt.After = page.Next; opt.After == "" {
			k.note("removed %d keys", removed)
			return nil
		}
	}
}

// typed writes a key as a shell takes it, where it can be typed.
func typed(key string) string {
	if name := shown(key); name != key {
		return name
	}
	return quoted(key)
}

func newKVLsCommand(k *kvApp) *cobra.Command {
	var opt koinon.ListOptions
	var long bool
	cmd := &cobra.Command{
		Use:   "ls [PREFIX]",
		Short: "List keys",
		Long: `List the keys that begin with PREFIX, in the order of their bytes. With -o json
their values are told as well.`,
		Example: "  koinon kv ls\n  koinon kv ls -l /app/\n  koinon kv ls /app/ --limit 100 --after /app/q -o json",
		Args:    arguments(0, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if opt.Limit < 0 {
				return &usageError{cmd: cmd.CommandPath(), err: errors.New("--limit is negative")}
			}
			opt.Prefix = strings.Join(args, "")
			opt.KeysOnly = !k.json()
			return k.run(cmd.Context(), func(ctx context.Context, kv *koinon.KV) error {
				entries, next, err := listKeys(ctx, kv, opt)
				if err != nil {
					return kvError("list", opt.Prefix, err)
				}
				list := make([]kvEntry, 0, len(entries))
				for _, e := range entries {
					list = append(list, newKVEntry(e))
				}
				if next != "" {
					k.note("there are more: --after %s shows them", typed(next))
				}
				return k.print(list, func(w io.Writer) {
					if long {
						row(w, "REVISION", "VERSION", "SIZE", "KEY")
					}
					for _, e := range entries {
						if long {
							row(w, e.Revision, e.Version, e.Size, shown(e.Key))
						} else {
							row(w, shown(e.Key))
						}
					}
				})
			})
		},
	}
	readFlags(cmd, &opt.ReadOptions)
	cmd.Flags().IntVar(&opt.Limit, "limit", 0, "at most `N` keys; 0 is all")
	cmd.Flags().StringVar(&opt.After, "after", "", "only keys that come after `KEY`")
	cmd.Flags().BoolVarP(&long, "long", "l", false, "with revision, version and size in bytes")
	return cmd
}

// listKeys reads pages, all of one revision, until there are enough or no more.
func listKeys(ctx context.Context, kv *koinon.KV, opt koinon.ListOptions) (entries []koinon.Entry, next string, err error) {
	limit := opt.Limit
	for {
		if limit > 0 {
			opt.Limit = limit - len(entries)
		}
		page, err := kv.List(ctx, opt)
		if err != nil {
			return nil, "", err
		}
		entries = append(entries, page.Entries...)
		if page.Next == "" || limit > 0 && len(entries) >= limit {
			return entries, page.Next, nil
		}
		opt.After = page.Next
		if !opt.Stale { // another node may not have come so far
			opt.Revision = page.Revision
		}
	}
}
