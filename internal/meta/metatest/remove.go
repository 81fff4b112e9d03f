package metatest

import (
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

func testLink(x *tree) {
	root := x.root()
	d := x.mkdir(root, "d", 0o777)
	f := x.create(root, "f", 0o644)
	g := x.must(x.link(f, d, "g"))
	equal(x, "inode", g.Ino, f.Ino)
	equal(x, "links", g.Nlink, 2)
	if g.CtimeNs <= f.CtimeNs || g.MtimeNs != f.MtimeNs {
		x.tb.Fatalf("times: expected a later change time than %v only, found %v", f, g)
	}
	equal(x, "by the new name", x.lookup(d, "g").Ino, f.Ino)

	_, err := x.link(f, d, "g")
	x.refused(sys.Exist, err)
	_, err = x.link(d, root, "e")
	x.refused(sys.Permission, err)
	_, err = x.link(&metapb.Attr{Ino: 9999}, root, "e")
	x.refused(sys.NotExist, err)
	_, err = x.link(f, f, "e")
	x.refused(sys.NotDir, err)
	_, err = x.link(f, &metapb.Attr{Ino: 9999}, "e")
	x.refused(sys.NotExist, err)
	_, err = x.as(1000, 100).link(f, root, "e")
	x.refused(sys.Access, err)
	x.must(x.as(1000, 100).link(f, d, "h"))
	l := x.must(x.make(sys.TypeSymlink, root, "l", 0o777))
	equal(x, "links of a symbolic link", x.must(x.link(l, d, "l")).Nlink, 2)

	x.must(x.unlink(root, "f"))
	x.must(x.unlink(d, "g"))
	equal(x, "links", x.get(f).Nlink, 1)
	x.must(x.unlink(d, "h"))
	_, err = x.link(f, d, "i")
	x.refused(sys.NotExist, err)
}

func testUnlink(x *tree) {
	root := x.root()
	d := x.mkdir(root, "d", 0o755)
	f := x.create(d, "f", 0o644)
	for _, c := range []struct {
		dir  *metapb.Attr
		name string
		kind sys.Kind
	}{
		{root, "d", sys.IsDir}, {root, "none", sys.NotExist}, {f, "x", sys.NotDir},
		{&metapb.Attr{Ino: 9999}, "x", sys.NotExist},
	} {
		_, err := x.unlink(c.dir, c.name)
		x.refused(c.kind, err)
	}
	_, err := x.as(1000, 100).unlink(d, "f")
	x.refused(sys.Access, err)
	_, err = x.as(1000, 100).unlink(d, "none")
	x.refused(sys.NotExist, err)

	gone := x.must(x.unlink(d, "f"))
	equal(x, "inode", gone.Ino, f.Ino)
	equal(x, "links", gone.Nlink, 0)
	x.absent(d, "f")
	_, err = x.unlink(d, "f")
	x.refused(sys.NotExist, err)
	x.must(x.make(sys.TypeSymlink, d, "l", 0o777))
	x.must(x.unlink(d, "l"))
	again := x.create(d, "f", 0o644)
	if again.Ino == f.Ino {
		x.tb.Fatalf("inode %d was given out twice", f.Ino)
	}
}

func testRmdir(x *tree) {
	root := x.root()
	d := x.mkdir(root, "d", 0o755)
	x.mkdir(d, "e", 0o755)
	x.create(root, "f", 0o644)
	for _, c := range []struct {
		dir  *metapb.Attr
		name string
		kind sys.Kind
	}{
		{root, "d", sys.NotEmpty}, {root, "f", sys.NotDir}, {root, "none", sys.NotExist},
	} {
		_, err := x.rmdir(c.dir, c.name)
		x.refused(c.kind, err)
	}
	_, err := x.as(1000, 100).rmdir(d, "e")
	x.refused(sys.Access, err)
	x.must(x.rmdir(d, "e"))
	equal(x, "links", x.get(d).Nlink, 2)
	x.must(x.rmdir(root, "d"))
	equal(x, "links of the root", x.root().Nlink, 2)
	_, err = x.getAttr1(d.Ino)
	x.refused(sys.Stale, err)
}

// A process may stand in a directory that is gone.
func testRemovedDirectory(x *tree) {
	root := x.root()
	d := x.mkdir(root, "d", 0o755)
	f := x.create(root, "f", 0o644)
	x.must(x.rmdir(root, "d"))
	_, err := x.lookup1(d, "x")
	x.refused(sys.NotExist, err)
	for _, typ := range []sys.FileType{sys.TypeRegular, sys.TypeDir} {
		_, err = x.make(typ, d, "x", 0o644)
		x.refused(sys.NotExist, err)
	}
	_, err = x.link(f, d, "x")
	x.refused(sys.NotExist, err)
	_, err = x.rename(root, "f", d, "x", plain)
	x.refused(sys.NotExist, err)
	_, err = x.chmod(d, 0o700)
	x.refused(sys.Stale, err)
	_, err = x.readDir(d, 0, 0)
	x.refused(sys.Stale, err)
}

func testSticky(x *tree) {
	root := x.root()
	d := x.mkdir(root, "d", 0o777)
	x.must(x.chown(d, 500, 500))
	x.must(x.chmod(d, 0o1777))
	owner, writer, other := x.as(500, 500), x.as(1000, 100), x.as(2000, 200)
	writer.create(d, "f", 0o666)
	writer.mkdir(d, "e", 0o777)
	_, err := other.unlink(d, "f")
	x.refused(sys.Permission, err)
	_, err = other.rmdir(d, "e")
	x.refused(sys.Permission, err)
	x.must(owner.rmdir(d, "e"))
	x.must(writer.unlink(d, "f"))
	writer.create(d, "f", 0o666)
	x.must(owner.unlink(d, "f"))
	writer.create(d, "f", 0o666)
	x.must(x.unlink(d, "f"))
}

// The inodes that keep the tree's books are out of reach.
func testHidden(x *tree) {
	root := x.root()
	f := x.create(root, "f", 0o644)
	for _, ino := range []sys.Ino{sys.QuarantineIno, sys.FreedIno, sys.PendingIno, 0, 5} {
		h := &metapb.Attr{Ino: uint64(ino)}
		_, err := x.make(sys.TypeRegular, h, "x", 0o644)
		x.refused(sys.Permission, err)
		_, err = x.unlink(h, "x")
		x.refused(sys.Permission, err)
		_, err = x.rename(root, "f", h, "x", plain)
		x.refused(sys.Permission, err)
		_, err = x.link(h, root, "x")
		x.refused(sys.Permission, err)
		_, err = x.link(f, h, "x")
		x.refused(sys.Permission, err)
		_, err = x.chmod(h, 0o777)
		x.refused(sys.Permission, err)
		_, err = x.commit(&metapb.Commit{Ino: h.Ino, Inline: []byte("x")})
		x.refused(sys.Permission, err)
		_, err = x.truncate(h, 0)
		x.refused(sys.Permission, err)
		_, err = x.setXattr(h, "user.a", "b", 0)
		x.refused(sys.Permission, err)
		_, err = x.as(1000, 100).getAttr1(h.Ino)
		x.refused(sys.Permission, err)
		_, err = x.as(1000, 100).readDir(h, 0, 0)
		x.refused(sys.Permission, err)
	}
}
