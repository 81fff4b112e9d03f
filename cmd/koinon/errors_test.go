//go:build linux && !client

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"github.com/koinon/koinon/internal/sys"
)

func TestWords(t *testing.T) {
	for _, x := range []struct {
		err  error
		want string
	}{
		{errors.New("plain"), "plain"},
		{sys.E(sys.Op("fusefs.Mount"), sys.Busy, sys.Subject("/m"), "koinon is mounted there already"), "/m: koinon is mounted there already"},
		{sys.E(sys.Op("fusefs.Mount"), sys.NotDir, sys.Subject("/m"), "a mount point is a directory"), "/m: not a directory: a mount point is a directory"},
		{sys.E(sys.Op("read config"), sys.NotExist, sys.Subject("/f"), fs.ErrNotExist), "/f: file does not exist"},
		{sys.E(sys.Op("read config"), sys.NotExist, sys.Subject("/f"), errors.New("no such file or directory")), "/f: no such file or directory"},
		{sys.E(sys.Op("a"), sys.Subject("x"), sys.E(sys.Op("b"), sys.Subject("x"), sys.Corrupt)), "x: corrupt data"},
		{sys.E(sys.Op("a"), sys.NotEmpty), "directory not empty"},
		{sys.E(sys.Op("cluster.Change"), sys.Exist, sys.Subject("n8"), "node n7 has the address"), "n8: node n7 has the address"},
		{fmt.Errorf("token 3f: %w", sys.E(sys.Op("cluster.Change"), sys.Access, "it is unknown")), "token 3f: it is unknown"},
		{fmt.Errorf("%w; and so: %w", sys.E(sys.Op("a"), sys.Invalid, "why"), errors.New("then")), "why; and so: then"},
		{errors.Join(sys.E(sys.Op("a"), sys.Stale), sys.E(sys.Op("b"), sys.Invalid, "why")), "stale file handle\nwhy"},
	} {
		if got := words(x.err); got != x.want {
			t.Errorf("%v: expected %q, found %q", x.err, x.want, got)
		}
	}
}

func TestHints(t *testing.T) {
	for _, x := range []struct{ dir, config, msg, want string }{
		{"", "", "run `koinon dev up`", "run `koinon dev up`"},
		{"/d", "", "run `koinon dev start 1`, see `koinon status`", "run `koinon dev start 1 --dir /d`, see `koinon status --config /d/client.toml`"},
		{"/a b", "", "`koinon dev stop`", "`koinon dev stop --dir '/a b'`"},
		{"", "c.toml", "`koinon mkdir -p /x` or `koinon dev up`", "`koinon mkdir -p /x --config c.toml` or `koinon dev up`"},
		{"", "c.toml", "`koinon serve --config node.toml`", "`koinon serve --config node.toml`"},
		{"/d", "", "another `koinon dev` command", "another `koinon dev` command"},
		{"/d", "", "`koinon status --config /e`", "`koinon status --config /e`"},
	} {
		a := &app{devDir: x.dir, configPath: x.config}
		if got := a.hint(x.msg); got != x.want {
			t.Errorf("%s: expected %q, found %q", fmt.Sprint(x.dir, x.config), x.want, got)
		}
	}
}

func TestTeller(t *testing.T) {
	for quiet, want := range map[bool]string{
		false: "koinon: late, see `koinon status --config c`; node: n1; err: why\n",
		true:  "",
	} {
		var told strings.Builder
		a := &app{err: &told, configPath: "c", quiet: quiet}
		a.logger().With("node", sys.NodeID(1)).Warn("late, see `koinon status`", "err", sys.E(sys.Op("a.B"), sys.Invalid, "why"))
		a.logger().Info("nobody asks")
		if told.String() != want {
			t.Errorf("quiet %v: expected %q, found %q", quiet, want, told.String())
		}
	}
}

func TestTyped(t *testing.T) {
	for key, want := range map[string]string{"/app/q": "/app/q", "a b": "'a b'", "it's": `'it'\''s'`, "a\x00b": `"a\x00b"`} {
		if got := typed(key); got != want {
			t.Errorf("%q: expected %s, found %s", key, want, got)
		}
	}
}
