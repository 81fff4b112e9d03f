package metatest

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"

	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

func testReadDir(x *tree) {
	root := x.root()
	d := x.mkdir(root, "d", 0o755)
	ans, err := x.readDir(d, 0, 10)
	x.must(nil, err)
	equal(x, "entries of an empty directory", len(ans.Entries), 0)
	equal(x, "end of an empty directory", ans.End, true)
	equal(x, "the directory", ans.Attr.Ino, d.Ino)

	const files = 2500
	for i := range files {
		x.create(d, fmt.Sprintf("f%d", i), 0o644)
	}
	equal(x, "names", len(x.list(d)), files)
	for _, limit := range []uint32{0, 5000} {
		ans, err = x.readDir(d, 0, limit)
		x.must(nil, err)
		equal(x, "entries", len(ans.Entries), meta.ReadDirMax)
		equal(x, "end", ans.End, false)
	}
	first := ans.Entries[0]
	if first.Cookie < meta.FirstCookie || first.Attr.GetIno() != first.Ino || first.Type != uint32(sys.TypeRegular) {
		x.tb.Fatalf("entry: expected a cookie and attributes, found %v", first)
	}
	ans, err = x.readDir(d, x.get(d).NextCookie-1, 10)
	x.must(nil, err)
	equal(x, "entries after the last", len(ans.Entries), 0)
	ans, err = x.readDir(d, math.MaxUint64, 10)
	x.must(nil, err)
	equal(x, "entries after all cookies", len(ans.Entries), 0)
	ans, err = x.readDir(d, x.get(d).NextCookie-11, 10)
	x.must(nil, err)
	equal(x, "the last entries", len(ans.Entries), 10)
	equal(x, "end", ans.End, true)
	ans, err = x.query(&metapb.Query{Op: &metapb.Query_ReadDir{ReadDir: &metapb.ReadDir{Ino: d.Ino, Limit: 1}}})
	x.must(nil, err)
	equal(x, "attributes nobody asked for", ans.Entries[0].Attr.GetIno(), 0)
	_, err = x.readDir(x.lookup(d, "f7"), 0, 10)
	x.refused(sys.NotDir, err)
}

// While a directory is listed page by page, others change it. What is there all
// the time comes exactly once; what is not there at any time never comes.
func testReadDirChanging(x *tree) {
	root := x.root()
	for seed := range uint64(10) {
		r := rand.New(rand.NewPCG(seed, 2))
		d := x.mkdir(root, fmt.Sprintf("d%d", seed), 0o755)
		stay, live, ever := map[string]bool{}, []string{}, map[string]bool{}
		for i := range 60 {
			name := fmt.Sprintf("%d", i)
			x.create(d, name, 0o644)
			if ever[name] = true; i%3 == 0 {
				stay[name] = true
			} else {
				live = append(live, name)
			}
		}
		seen := map[string]int{}
		for after, end := uint64(0), false; !end; {
			ans, err := x.readDir(d, after, 1+r.Uint32N(6))
			x.must(nil, err)
			for _, e := range ans.Entries {
				seen[string(e.Name)]++
				after = e.Cookie
			}
			end = ans.End
			live = x.disturb(d, r, live, ever)
		}
		for name := range stay {
			equal(x, "how often "+name+" was listed", seen[name], 1)
		}
		for name, n := range seen {
			if !ever[name] || n > 2 {
				x.tb.Fatalf("seed %d: %q was listed %d times", seed, name, n)
			}
		}
	}
}

// disturb changes a directory: it removes, adds and renames names of live.
func (x *tree) disturb(d *metapb.Attr, r *rand.Rand, live []string, ever map[string]bool) []string {
	x.tb.Helper()
	if len(live) > 0 {
		i := r.IntN(len(live))
		x.must(x.unlink(d, live[i]))
		live = append(live[:i], live[i+1:]...)
	}
	if len(ever) < 100 {
		name := fmt.Sprintf("new%d", len(ever))
		x.create(d, name, 0o644)
		ever[name] = true
		live = append(live, name)
	}
	if len(live) > 1 {
		i := r.IntN(len(live))
		name := fmt.Sprintf("moved%d", len(ever))
		x.must(x.rename(d, live[i], d, name, plain))
		ever[name] = true
		live[i] = name
	}
	return live
}

// A program that renames what it lists comes to an end.
func testReadDirRename(x *tree) {
	d := x.mkdir(x.root(), "d", 0o755)
	for i := range 20 {
		x.create(d, fmt.Sprintf("%d", i), 0o644)
	}
	renamed := 0
	for after, end := uint64(0), false; !end; {
		ans, err := x.readDir(d, after, 3)
		x.must(nil, err)
		for _, e := range ans.Entries {
			x.must(x.rename(d, string(e.Name), d, string(e.Name)+"x", plain))
			renamed++
			after = e.Cookie
		}
		end = ans.End
	}
	equal(x, "renamed", renamed, 20)
	for _, name := range x.list(d) {
		if strings.Count(name, "x") != 1 {
			x.tb.Fatalf("expected each to be renamed once, found %q", name)
		}
	}
	// An entry that replaces another one has its place.
	names := x.list(d)
	x.must(x.rename(d, names[15], d, names[3], plain))
	equal(x, "the name at the place of the replaced", x.list(d)[3], names[3])
}
