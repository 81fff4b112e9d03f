package mountinfo

import (
	"reflect"
	"testing"
)

func TestParse(t *testing.T) {
	const text = `36 35 98:0 / /proc rw - proc proc rw
33-36 35 98:0 /mnt1 /mnt/a\040b rw,noatime master:1 - fuse.koinon koinon:dev-1 rw,errors=continue
34-junk
35-37 35 98:0 / /mnt/\134x rw - ext4 /dev/vda1 rw
`
	want := []Mount{{"/proc", "/", "proc", "proc"}, {"/mnt/a b", "/mnt1", "fuse.koinon", "koinon:dev-1"}, {`/mnt/\x`, "/", "ext4", "/dev/vda1"}}
	if got := Parse(text); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
}

// A path belongs to the deepest mount above it, of two on one path to the
// later.
func TestOf(t *testing.T) {
	all := []Mount{{"/", "/", "ext4", "a"}, {"/tree", "/", "ext4", "below"}, {"/tree", "/", treeType, "koinon:lab"},
		{"/tree/x", "/", "tmpfs", "t"}, {"/bound", "/data/set", treeType, "koinon:lab"}}
	for p, want := range map[string]struct{ source, inTree string }{
		"/":            {"a", "/"},
		"/tree":        {"koinon:lab", "/"},
		"/tree/a/b":    {"koinon:lab", "/a/b"},
		"/treeline":    {"a", "/treeline"},
		"/tree/x/y":    {"t", "/y"},
		"/bound/one":   {"koinon:lab", "/data/set/one"},
		"/bound":       {"koinon:lab", "/data/set"},
		"/boundless/y": {"a", "/boundless/y"},
	} {
		m, ok := Of(all, p)
		if !ok || m.Source != want.source || m.InTree(p) != want.inTree {
			t.Errorf("%s is %s in %s (%v), want %s in %s", p, m.InTree(p), m.Source, ok, want.inTree, want.source)
		}
	}
	if m, ok := Of(nil, "/"); ok {
		t.Errorf("with nothing mounted, / is in %v", m)
	}
	if m := all[2]; !m.Tree() || m.Cluster() != "lab" || m.Source != TreeSource("lab") || all[0].Tree() {
		t.Errorf("%v is not told from %v", m, all[0])
	}
}
