package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/koinon/koinon"
	"github.com/koinon/koinon/cmd/koinon/internal/transfer"
)

// treeOpener opens the tree that a command works on.
type treeOpener func(ctx context.Context) (*koinon.Client, error)

// treeCommands are the commands that work on the tree without a mount.
func treeCommands(a *app, open treeOpener) []subcommand {
	t := &treeApp{app: a, open: open}
	return []subcommand{
		named("ls", t, newLsCommand), named("cp", t, newCpCommand), named("cat", t, newCatCommand), named("put", t, newPutCommand), named("rm", t, newRmCommand),
		named("mkdir", t, newMkdirCommand), named("mv", t, newMvCommand), named("stat", t, newStatCommand), named("du", t, newDuCommand), named("df", t, newDfCommand),
	}
}

// openTree opens the tree of the chosen cluster.
func (a *app) openTree(ctx context.Context) (*koinon.Client, error) {
	return koinon.Open(ctx, koinon.Options{Config: a.configPath, Logger: a.logger()})
}

// treeApp is an app with a tree.
type treeApp struct {
	*app
	open treeOpener
}

// closeTimeout is how long leaving the cluster may take after an interrupt.
const closeTimeout = 10 * time.Second

// run opens the tree, lets do work on it, and leaves it in order even when the
// user interrupts.
func (t *treeApp) run(ctx context.Context, do func(ctx context.Context, c *koinon.Client) error) error {
	c, err := t.open(ctx)
	if err != nil {
		return err
	}
	err = do(ctx, c)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	return errors.Join(err, c.Close(ctx))
}

// each does the same to every argument. It goes on after an error, having told
// it, when there are more.
func (a *app) each(ctx context.Context, args []string, do func(arg string) error) error {
	if len(args) == 1 {
		return do(args[0])
	}
	failed := false
	for _, arg := range args {
		err := do(arg)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if lost := a.lost(); lost != nil {
			return lost
		}
		if err != nil {
			failed = true
			a.complain(err)
		}
	}
	if failed {
		return &exitError{code: 1}
	}
	return nil
}

// treePath is the path that an argument means: the prefix koinon: and the
// first slash may be left out.
func treePath(arg string) string {
	p := strings.TrimPrefix(arg, transfer.Prefix)
	if !strings.HasPrefix(p, "/") {
		p = "/" + p
	}
	return p
}

// treeError says what could not be done to what, why, and, where somebody
// knows, what to do about it.
func treeError(what, name string, err error, hints ...hint) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	name, cause := shown(name), err
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		cause = pe.Err
	} else if le, ok := errors.AsType[*os.LinkError](err); ok {
		cause = le.Err
	}
	hints = append(hints, hint{syscall.ENAMETOOLONG, "a name has at most 255 bytes, a path 4095"})
	for _, h := range hints {
		if errors.Is(err, h.when) {
			return &toldError{fmt.Sprintf("cannot %s %s: %s: %s", what, name, words(cause), h.do), err}
		}
	}
	return &toldError{fmt.Sprintf("cannot %s %s: %s", what, name, words(cause)), err}
}

// A hint is what to do about an error.
type hint struct {
	when error
	do   string
}

// shown writes a name so that a terminal takes no harm from it; of a very long
// one, its ends.
func shown(name string) string {
	const most, ends = 1024, 100
	if len(name) > most {
		return fmt.Sprintf("%s...%s (%d bytes)", shown(name[:ends]), shown(name[len(name)-ends:]), len(name))
	}
	if utf8.ValidString(name) && strings.IndexFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }) < 0 && name != "" {
		return name
	}
	return strconv.Quote(name)
}

// umask returns the process's umask(2) as Linux tells it, elsewhere the usual
// one.
func umask() fs.FileMode {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0o022
	}
	for line := range strings.Lines(string(status)) {
		if v, ok := strings.CutPrefix(line, "Umask:"); ok {
			if m, err := strconv.ParseUint(strings.TrimSpace(v), 8, 32); err == nil {
				return fs.FileMode(m) & fs.ModePerm
			}
		}
	}
	return 0o022
}

// treeEntry is a file as -o json prints it.
type treeEntry struct {
	Path   string    `json:"path"`
	Raw    string    `json:"path_base64,omitempty"` // of a path that is not UTF-8
	Type   string    `json:"type"`
	Mode   string    `json:"mode"` // octal
	Size   int64     `json:"size"`
	Links  uint32    `json:"links"`
	UID    uint32    `json:"uid"`
	GID    uint32    `json:"gid"`
	Ino    uint64    `json:"ino"`
	Mtime  time.Time `json:"mtime"`
	Atime  time.Time `json:"atime"`
	Ctime  time.Time `json:"ctime"`
	Target string    `json:"target,omitempty"`
}

func newTreeEntry(p string, i *koinon.Info) treeEntry {
	e := treeEntry{
		Path: p, Type: typeName(i.Mode()), Mode: fmt.Sprintf("%04o", unixMode(i.Mode())), Size: i.Size(), Links: i.Links(),
		UID: i.UID(), GID: i.GID(), Ino: i.Ino(), Mtime: i.ModTime().UTC(), Atime: i.AccessTime().UTC(), Ctime: i.ChangeTime().UTC(), Target: i.Target(),
	}
	if !utf8.ValidString(p) {
		e.Raw = base64.StdEncoding.EncodeToString([]byte(p))
	}
	return e
}

func typeName(m fs.FileMode) string {
	switch {
	case m.IsRegular():
		return "file"
	case m.IsDir():
		return "directory"
	case m&fs.ModeSymlink != 0:
		return "symlink"
	case m&fs.ModeNamedPipe != 0:
		return "fifo"
	case m&fs.ModeSocket != 0:
		return "socket"
	case m&fs.ModeCharDevice != 0:
		return "character device"
	}
	return "block device"
}

// unixMode is the mode as chmod(1) takes it.
func unixMode(m fs.FileMode) uint32 {
	bits := uint32(m.Perm())
	for mode, bit := range map[fs.FileMode]uint32{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
		if m&mode != 0 {
			bits |= bit
		}
	}
	return bits
}

// modeString is the mode as ls(1) writes it.
func modeString(m fs.FileMode) string {
	b := []byte("-rwxrwxrwx")
	for i := range 9 {
		if m&(1<<(8-i)) == 0 {
			b[i+1] = '-'
		}
	}
	switch typeName(m) {
	case "directory":
		b[0] = 'd'
	case "symlink":
		b[0] = 'l'
	case "fifo":
		b[0] = 'p'
	case "socket":
		b[0] = 's'
	case "character device":
		b[0] = 'c'
	case "block device":
		b[0] = 'b'
	}
	for _, s := range []struct {
		mode fs.FileMode
		at   int
		mark byte
	}{{fs.ModeSetuid, 3, 's'}, {fs.ModeSetgid, 6, 's'}, {fs.ModeSticky, 9, 't'}} {
		if m&s.mode == 0 {
			continue
		}
		if b[s.at] == '-' {
			s.mark -= 'a' - 'A'
		}
		b[s.at] = s.mark
	}
	return string(b)
}

// human makes -h mean sizes for people; help keeps its long name.
func human(cmd *cobra.Command, v *bool) {
	cmd.Flags().BoolVarP(v, "human", "h", false, "sizes for people, like 1.5 GiB")
	cmd.Flags().Bool("help", false, "help for "+cmd.Name())
}

// inDir returns the path that an argument gets in a directory: that with its
// own last name.
func inDir(dir, arg string) string { return path.Join(dir, path.Base(arg)) }
