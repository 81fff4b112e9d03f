package metatest

import (
	"fmt"
	"strings"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// Every kind of source over every kind of target.
func testRenameMatrix(x *tree) {
	root := x.root()
	d := x.mkdir(root, "dir", 0o755)
	kinds := []string{"none", "file", "symlink", "empty", "full"}
	put := func(dir *metapb.Attr, kind, name string) {
		x.tb.Helper()
		switch kind {
		case "file":
			x.create(dir, name, 0o644)
		case "symlink":
			x.must(x.make(sys.TypeSymlink, dir, name, 0o777))
		case "empty":
			x.mkdir(dir, name, 0o755)
		case "full":
			x.create(x.mkdir(dir, name, 0o755), "in", 0o644)
		}
	}
	isDir := func(kind string) bool { return kind == "empty" || kind == "full" }
	expect := func(from, to string, f renameFlags) (sys.Kind, bool) {
		switch {
		case from == "none":
			return sys.NotExist, true
		case f == exchange && to == "none":
			return sys.NotExist, true
		case f == noReplace && to != "none":
			return sys.Exist, true
		case f == exchange || to == "none":
			return 0, false
		case isDir(from) && !isDir(to):
			return sys.NotDir, true
		case !isDir(from) && isDir(to):
			return sys.IsDir, true
		case to == "full":
			return sys.NotEmpty, true
		}
		return 0, false
	}
	for i, where := range []*metapb.Attr{root, d} {
		for _, from := range kinds {
			for _, to := range kinds {
				for _, f := range []renameFlags{plain, noReplace, exchange} {
					n1 := fmt.Sprintf("%s-%s-%d-%d", from, to, f, i)
					n2 := n1 + "-to"
					put(root, from, n1)
					put(where, to, n2)
					renameCase(x, root, n1, where, n2, f, expect)
				}
			}
		}
	}
	_, err := x.do(&metapb.Command{Op: &metapb.Command_Rename{Rename: &metapb.Rename{
		Parent: root.Ino, Name: []byte("dir"), NewParent: root.Ino, NewName: []byte("x"), NoReplace: true, Exchange: true,
	}}})
	x.refused(sys.Invalid, err)
}

func renameCase(x *tree, d1 *metapb.Attr, n1 string, d2 *metapb.Attr, n2 string, f renameFlags,
	expect func(from, to string, f renameFlags) (sys.Kind, bool)) {
	x.tb.Helper()
	kinds := strings.Split(n1, "-")
	before1, _ := x.lookup1(d1, n1)
	before2, _ := x.lookup1(d2, n2)
	_, err := x.rename(d1, n1, d2, n2, f)
	after1, _ := x.lookup1(d1, n1)
	after2, _ := x.lookup1(d2, n2)
	if kind, refused := expect(kinds[0], kinds[1], f); refused {
		if !sys.Is(err, kind) {
			x.tb.Fatalf("%s: expected %q, found %v", n1, kind, err)
		}
		if before1.String() != after1.String() || before2.String() != after2.String() {
			x.tb.Fatalf("%s: refused, but something changed", n1)
		}
		return
	}
	if err != nil {
		x.tb.Fatalf("%s: expected success, found %v", n1, err)
	}
	equal(x, n1+": what is at the target", after2.GetIno(), before1.GetIno())
	if f == exchange {
		equal(x, n1+": what is at the source", after1.GetIno(), before2.GetIno())
	} else if after1 != nil {
		x.tb.Fatalf("%s: the source is still there", n1)
	}
	if after2.CtimeNs <= before1.CtimeNs || after2.MtimeNs != before1.MtimeNs {
		x.tb.Fatalf("%s: expected a later change time only than %v, found %v", n1, before1, after2)
	}
}

// What is renamed stays what it is; what is replaced loses a link.
func testRenameKeeps(x *tree) {
	root := x.root()
	d := x.mkdir(root, "d", 0o755)
	f := x.create(root, "f", 0o640)
	x.must(x.commit(&metapb.Commit{Ino: f.Ino, Inline: []byte("bytes")}))
	g := x.create(d, "g", 0o600)
	x.must(x.link(g, root, "other"))
	x.must(x.rename(root, "f", d, "g", plain))
	now := x.lookup(d, "g")
	equal(x, "mode", now.Mode, 0o640)
	equal(x, "links", now.Nlink, 1)
	equal(x, "bytes", string(x.inline(now)), "bytes")
	equal(x, "links of the replaced", x.get(g).Nlink, 1)

	x.must(x.rename(d, "g", root, "other", plain))
	equal(x, "links of the replaced", x.get(g).Nlink, 0)
	x.must(x.rename(root, "other", root, "other", plain))
	_, err := x.rename(root, "other", root, "other", noReplace)
	x.refused(sys.Exist, err)
	_, err = x.rename(root, "none", root, "none", plain)
	x.refused(sys.NotExist, err)
}

func testRenameDirectory(x *tree) {
	root := x.root()
	a, b := x.mkdir(root, "a", 0o755), x.mkdir(root, "b", 0o755)
	m := x.mkdir(a, "m", 0o755)
	x.create(m, "f", 0o644)
	x.must(x.rename(a, "m", b, "m", plain))
	equal(x, "links of the old parent", x.get(a).Nlink, 2)
	equal(x, "links of the new parent", x.get(b).Nlink, 3)
	equal(x, "parent", x.get(m).Parent, b.Ino)
	x.lookup(m, "f")

	e := x.mkdir(a, "e", 0o755)
	x.must(x.rename(b, "m", a, "e", plain))
	equal(x, "links of the old parent", x.get(b).Nlink, 2)
	equal(x, "links of the new parent", x.get(a).Nlink, 3)
	_, err := x.getAttr1(e.Ino)
	x.refused(sys.Stale, err)

	x.mkdir(a, "n", 0o755)
	x.must(x.rename(a, "n", a, "o", plain))
	equal(x, "links after a rename within", x.get(a).Nlink, 4)
	x.mkdir(a, "p", 0o755)
	x.must(x.rename(a, "o", a, "p", plain))
	equal(x, "links after a replacement within", x.get(a).Nlink, 4)
}

func testRenameLoop(x *tree) {
	root := x.root()
	a := x.mkdir(root, "a", 0o755)
	b := x.mkdir(a, "b", 0o755)
	c := x.mkdir(b, "c", 0o755)
	x.mkdir(c, "d", 0o755)
	for _, to := range []*metapb.Attr{a, b, c} {
		_, err := x.rename(root, "a", to, "x", plain)
		x.refused(sys.Invalid, err)
	}
	_, err := x.rename(root, "a", b, "c", exchange)
	x.refused(sys.Invalid, err)
	_, err = x.rename(b, "c", root, "a", exchange)
	x.refused(sys.Invalid, err)
	_, err = x.rename(b, "c", root, "a", plain)
	x.refused(sys.NotEmpty, err)
	x.must(x.rename(b, "c", root, "c", plain))
	x.must(x.rename(root, "a", c, "a", plain))
	equal(x, "parent", x.get(a).Parent, c.Ino)
}

func testRenameExchange(x *tree) {
	root := x.root()
	a, b := x.mkdir(root, "a", 0o755), x.mkdir(root, "b", 0o755)
	m := x.mkdir(a, "m", 0o755)
	x.create(m, "in", 0o644)
	f := x.create(b, "f", 0o644)
	x.must(x.rename(a, "m", b, "f", exchange))
	equal(x, "links of the first", x.get(a).Nlink, 2)
	equal(x, "links of the second", x.get(b).Nlink, 3)
	equal(x, "parent", x.get(m).Parent, b.Ino)
	equal(x, "file", x.lookup(a, "m").Ino, f.Ino)
	equal(x, "directory", x.lookup(b, "f").Ino, m.Ino)

	n := x.mkdir(a, "n", 0o755)
	x.must(x.rename(a, "n", b, "f", exchange))
	equal(x, "parent of the first", x.get(n).Parent, b.Ino)
	equal(x, "parent of the second", x.get(m).Parent, a.Ino)
	x.must(x.rename(a, "n", a, "m", exchange))
	equal(x, "names", strings.Join(x.list(a), " "), "m n")
	equal(x, "links", x.get(a).Nlink, 3)
}

func testRenamePermission(x *tree) {
	root := x.root()
	open, closed := x.mkdir(root, "open", 0o777), x.mkdir(root, "closed", 0o755)
	u := x.as(1000, 100)
	x.create(open, "f", 0o644)
	x.create(closed, "f", 0o644)
	_, err := u.rename(closed, "f", open, "g", plain)
	x.refused(sys.Access, err)
	_, err = u.rename(open, "f", closed, "g", plain)
	x.refused(sys.Access, err)
	x.must(u.rename(open, "f", open, "g", plain))

	// Moving a directory to another one writes its "..".
	x.mkdir(open, "theirs", 0o755)
	mine := u.mkdir(open, "mine", 0o755)
	_, err = u.rename(open, "theirs", mine, "x", plain)
	x.refused(sys.Access, err)
	x.must(u.rename(open, "theirs", open, "x", plain))
	_, err = u.rename(mine, "g", open, "x", exchange)
	x.refused(sys.NotExist, err)
	u.mkdir(mine, "sub", 0o755)
	_, err = u.rename(mine, "sub", open, "x", exchange)
	x.refused(sys.Access, err)
	x.mkdir(root, "unsearchable", 0o666)
	_, err = u.rename(x.lookup(root, "unsearchable"), "f", open, "y", plain)
	x.refused(sys.Access, err)
}

func testRenameSticky(x *tree) {
	root := x.root()
	sticky, open := x.mkdir(root, "sticky", 0o777), x.mkdir(root, "open", 0o777)
	x.must(x.chmod(sticky, 0o1777))
	writer, other := x.as(1000, 100), x.as(2000, 200)
	writer.create(sticky, "w", 0o666)
	other.create(open, "o", 0o666)
	other.create(sticky, "o", 0o666)
	for _, c := range []struct {
		from, to *metapb.Attr
		n1, n2   string
		f        renameFlags
	}{
		{sticky, open, "w", "x", plain},
		{open, sticky, "o", "w", plain},
		{sticky, sticky, "o", "w", plain},
		{open, sticky, "o", "w", exchange},
		{sticky, open, "w", "o", exchange},
	} {
		_, err := other.rename(c.from, c.n1, c.to, c.n2, c.f)
		x.refused(sys.Permission, err)
	}
	x.must(other.rename(open, "o", sticky, "new", plain))
	x.must(writer.rename(sticky, "w", open, "w", plain))
}

// Two names of one inode: rename(2) does nothing.
func testRenameHardLinks(x *tree) {
	root := x.root()
	f := x.create(root, "f", 0o644)
	x.must(x.link(f, root, "g"))
	before := x.get(f)
	x.must(x.rename(root, "f", root, "g", plain))
	x.must(x.rename(root, "f", root, "g", exchange))
	_, err := x.rename(root, "f", root, "g", noReplace)
	x.refused(sys.Exist, err)
	equal(x, "names", strings.Join(x.list(root), " "), "f g")
	equal(x, "attributes", x.get(f).String(), before.String())
}
