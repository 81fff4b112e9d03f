package proc

import (
	"strings"
	"testing"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/proc/procpb"
	"github.com/koinon/koinon/internal/sys"
)

// TestPathsThatWillNotDo are refused when a job is submitted.
func TestPathsThatWillNotDo(t *testing.T) {
	w := newWorld(t)
	tree := groupTree{w.leader().host.Group(0)}
	for name, mk := range map[string]*metapb.Mknod{
		"d":    {Type: uint32(sys.TypeDir), Mode: 0o777},
		"f":    {Type: uint32(sys.TypeRegular), Mode: 0o666},
		"link": {Type: uint32(sys.TypeSymlink), Mode: 0o777, Target: []byte("d")},
	} {
		mk.Parent, mk.Name = uint64(sys.RootIno), []byte(name)
		must(tree.Do(t.Context(), &metapb.Command{Cred: rootCred, Op: &metapb.Command_Mknod{Mknod: mk}}))
	}
	for _, tc := range []struct{ dir, out, want string }{
		{"/none", "", "the working directory is no directory in the tree"},
		{"/f", "", "the working directory is no directory in the tree"},
		{"/f/x", "", "the working directory is no directory in the tree"},
		{"/link", "", `a symbolic link to "d" is in that path: name what it leads to`},
		{"/link/x", "", `a symbolic link to "d" is in that path`},
		{"", "/none/out", "make it first"},
		{"", "/f/out", "make it first"},
		{"", "/d", "outputs appear under a name that nothing has yet"},
		{"", "/link/out", `a symbolic link to "d" is in that path`},
	} {
		_, err := w.c.Submit(t.Context(), specOf(func(s *procpb.Spec) { s.Dir, s.Out = tc.dir, tc.out }))
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("in %q, outputs as %q: %v; want %q", tc.dir, tc.out, err, tc.want)
		}
	}
	if jobs := must(w.c.List(t.Context(), &procpb.ListRequest{All: true})).Jobs; len(jobs) > 0 {
		t.Errorf("%d were submitted", len(jobs))
	}
	w.finish(w.submit(specOf(func(s *procpb.Spec) { s.Dir, s.Out = "/d", "/d/out" })))
}
