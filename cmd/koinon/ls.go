package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/koinon/koinon"
	"github.com/koinon/koinon/internal/accounts"
)

// lister is one run of ls.
type lister struct {
	*treeApp
	long, recursive, all, human, dirs bool

	entries []treeEntry // collected for -o json
	blocks  int         // printed so far
	names   map[string]string
	now     time.Time
}

func newLsCommand(t *treeApp) *cobra.Command {
	l := lister{treeApp: t}
	cmd := &cobra.Command{
		Use:     "ls [PATH...]",
		Short:   "List directories",
		Example: "  koinon ls -l /\n  koinon ls -R /photos -o json",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				args = []string{"/"}
			}
			l.names, l.now = map[string]string{}, time.Now()
			return t.run(cmd.Context(), func(ctx context.Context, c *koinon.Client) error { return l.list(ctx, c, args) })
		},
	}
	flags := cmd.Flags()
	flags.BoolVarP(&l.long, "long", "l", false, "mode, owner, size and time of each")
	flags.BoolVarP(&l.recursive, "recursive", "R", false, "directories below as well")
	flags.BoolVarP(&l.all, "all", "a", false, "names that begin with a dot as well")
	flags.BoolVarP(&l.dirs, "directory", "d", false, "directories themselves, not what is in them")
	human(cmd, &l.human)
	return cmd
}

// list prints what is no directory first, then directories, as ls(1) does.
func (l *lister) list(ctx context.Context, c *koinon.Client, args []string) error {
	var files []*koinon.Info
	var names, paths, dirs []string
	err := l.each(ctx, args, func(arg string) error {
		p := treePath(arg)
		look := c.Stat
		if l.long || l.dirs { // as with ls(1), -l shows a link itself
			look = c.Lstat
		}
		info, err := look(ctx, p)
		if errors.Is(err, os.ErrNotExist) {
			info, err = c.Lstat(ctx, p) // a link that leads nowhere
		}
		switch {
		case err != nil:
			return treeError("list", p, err)
		case info.IsDir() && !l.dirs:
			dirs = append(dirs, p)
		default:
			files, names, paths = append(files, info), append(names, arg), append(paths, p)
		}
		return nil
	})
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if len(files) > 0 {
		l.print("", files, names, paths)
	}
	derr := l.each(ctx, dirs, func(p string) error { return l.dir(ctx, c, p, len(args) > 1 || l.recursive) })
	if l.json() {
		if l.entries == nil {
			l.entries = []treeEntry{}
		}
		if perr := l.app.print(l.entries, nil); perr != nil {
			return perr
		}
	}
	return cmp.Or(err, derr)
}

// dir prints a directory, below its name where there are several.
func (l *lister) dir(ctx context.Context, c *koinon.Client, p string, titled bool) error {
	d, err := c.OpenDir(ctx, p)
	if err != nil {
		return treeError("list", p, err)
	}
	return l.open(ctx, d, titled)
}

func (l *lister) open(ctx context.Context, d *koinon.Dir, titled bool) error {
	infos, err := d.List(ctx)
	if err != nil {
		return treeError("list", d.Path(), err)
	}
	if !l.all {
		infos = slices.DeleteFunc(infos, func(i *koinon.Info) bool { return strings.HasPrefix(i.Name(), ".") })
	}
	title := ""
	if titled {
		title = d.Path()
	}
	names, paths := make([]string, len(infos)), make([]string, len(infos))
	for i, info := range infos {
		names[i], paths[i] = info.Name(), path.Join(d.Path(), info.Name())
	}
	l.print(title, infos, names, paths)
	if !l.recursive {
		return nil
	}
	var failed error
	for _, info := range infos {
		if !info.IsDir() {
			continue
		}
		if err := l.open(ctx, d.Sub(info), true); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			l.complain(err)
			failed = &exitError{code: 1}
		}
	}
	return failed
}

// print writes one block of entries by their names.
func (l *lister) print(title string, infos []*koinon.Info, names, paths []string) {
	if l.json() {
		for i, info := range infos {
			l.entries = append(l.entries, newTreeEntry(paths[i], info))
		}
		return
	}
	if l.blocks++; l.blocks > 1 {
		fmt.Fprintln(l.out)
	}
	if title != "" {
		fmt.Fprintf(l.out, "%s:\n", shown(title))
	}
	if isTerminal(l.out) {
		for i, n := range names {
			names[i] = shown(n)
		}
	}
	switch {
	case l.long:
		l.printLong(infos, names)
	case isTerminal(l.out):
		writeColumns(l.out, names, terminalWidth(l.out))
	default:
		for _, n := range names {
			fmt.Fprintln(l.out, n)
		}
	}
}

func (l *lister) printLong(infos []*koinon.Info, names []string) {
	size := func(i *koinon.Info) string {
		if l.human {
			return byteSize(uint64(i.Size()))
		}
		return strconv.FormatInt(i.Size(), 10)
	}
	var links, owners, groups, sizes int
	for _, i := range infos {
		links = max(links, len(strconv.Itoa(int(i.Links()))))
		owners, groups = max(owners, len(l.user(i.UID()))), max(groups, len(l.group(i.GID())))
		sizes = max(sizes, len(size(i)))
	}
	for n, i := range infos {
		name := names[n]
		if t := i.Target(); t != "" {
			if isTerminal(l.out) {
				t = shown(t)
			}
			name += " -> " + t
		}
		fmt.Fprintf(l.out, "%s %*d %-*s %-*s %*s %s %s\n", modeString(i.Mode()), links, i.Links(), owners, l.user(i.UID()),
			groups, l.group(i.GID()), sizes, size(i), l.when(i.ModTime()), name)
	}
}

// when writes a time as ls(1) does: with the hour when it is less than half a
// year off, else with the year.
func (l *lister) when(t time.Time) string {
	const halfYear = 182 * 24 * time.Hour
	if d := l.now.Sub(t); d < -time.Hour || d > halfYear {
		return t.Format("Jan _2  2006")
	}
	return t.Format("Jan _2 15:04")
}

func (l *lister) user(uid uint32) string {
	return l.lookup("u", uid, func(id uint32) (string, error) {
		u, err := accounts.LookupUser(id)
		return u.Name, err
	})
}

func (l *lister) group(gid uint32) string {
	return l.lookup("g", gid, accounts.LookupGroup)
}

// lookup returns a name that this machine has for a number, else the number.
func (l *lister) lookup(kind string, id uint32, find func(uint32) (string, error)) string {
	number := strconv.FormatUint(uint64(id), 10)
	name, ok := l.names[kind+number]
	if !ok {
		var err error
		if name, err = find(id); err != nil {
			name = number
		}
		l.names[kind+number] = name
	}
	return name
}

func terminalWidth(w io.Writer) int {
	if f, ok := bare(w).(*os.File); ok {
		if width, _, err := term.GetSize(int(f.Fd())); err == nil && width > 0 {
			return width
		}
	}
	return 80
}

func terminalHeight(w io.Writer) int {
	if f, ok := bare(w).(*os.File); ok {
		if _, height, err := term.GetSize(int(f.Fd())); err == nil && height > 0 {
			return height
		}
	}
	return 24
}

// writeColumns writes names in as many columns as fit, downwards as ls(1).
func writeColumns(w io.Writer, names []string, width int) {
	const gap = 2
	for rows := 1; rows <= len(names); rows++ {
		var widths []int
		total := 0
		for at := 0; at < len(names); at += rows {
			longest := 0
			for _, n := range names[at:min(at+rows, len(names))] {
				longest = max(longest, len([]rune(n)))
			}
			widths = append(widths, longest+gap)
			total += longest + gap
		}
		if total-gap > width && rows < len(names) {
			continue
		}
		for r := range rows {
			var line strings.Builder
			for col, at := 0, r; at < len(names); col, at = col+1, at+rows {
				fmt.Fprintf(&line, "%-*s", widths[col], names[at])
			}
			fmt.Fprintln(w, strings.TrimRight(line.String(), " "))
		}
		return
	}
}

// isDirError is what a mount answers to reading a directory.
const isDirError = syscall.EISDIR
