package metatest

import (
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

func testAccess(x *tree) {
	root := x.root()
	f := x.create(root, "f", 0o644)
	x.must(x.chown(f, 1000, 100))
	x.must(x.chmod(f, 0o754))
	for _, c := range []struct {
		who  *tree
		want uint32
		ok   bool
	}{
		{x, 7, true},
		{x.as(1000, 1), 7, true},
		{x.as(2000, 100), 5, true}, {x.as(2000, 100), 2, false},
		{x.as(2000, 1, 3, 100), 5, true}, {x.as(2000, 1, 3, 100), 2, false},
		{x.as(3000, 1), 4, true}, {x.as(3000, 1), 2, false}, {x.as(3000, 1), 1, false}, {x.as(3000, 1), 0, true},
	} {
		err := c.who.access(f, c.want)
		_, opened := c.who.open(f, c.want)
		if !c.ok {
			x.refused(sys.Access, err)
			x.refused(sys.Access, opened)
			continue
		}
		if err != nil || opened != nil {
			x.tb.Fatalf("%v wants %o: expected success, found %v, %v", c.who.cred, c.want, err, opened)
		}
	}
	// The first class that fits counts, even when a later one would allow more.
	x.must(x.chmod(f, 0o077))
	x.refused(sys.Access, x.as(1000, 100).access(f, 4))
	x.must(x.chmod(f, 0o707))
	x.refused(sys.Access, x.as(2000, 100).access(f, 4))
	x.refused(sys.Invalid, x.access(f, 8))
	x.refused(sys.Stale, x.access(&metapb.Attr{Ino: 9999}, 4))
	_, err := x.open(x.mkdir(root, "d", 0o755), 2)
	x.refused(sys.IsDir, err)
}

func testSearch(x *tree) {
	root := x.root()
	d := x.mkdir(root, "d", 0o711)
	x.create(d, "f", 0o644)
	u := x.as(1000, 100)
	u.lookup(d, "f")
	_, err := u.readDir(d, 0, 0)
	x.refused(sys.Access, err)
	x.must(x.chmod(d, 0o744))
	_, err = u.lookup1(d, "f")
	x.refused(sys.Access, err)
	ans, err := u.readDir(d, 0, 0)
	x.must(nil, err)
	equal(x, "entries", len(ans.Entries), 1)
	equal(x, "attributes that may not be seen", ans.Entries[0].Attr.GetIno(), 0)
	_, err = u.lookup1(x.lookup(d, "f"), "x")
	x.refused(sys.NotDir, err)
}

func testChmod(x *tree) {
	root := x.root()
	f := x.create(root, "f", 0o644)
	x.must(x.chown(f, 1000, 100))
	owner, other := x.as(1000, 100), x.as(2000, 100)
	before := x.get(f)
	a := x.must(owner.chmod(f, 0o6755))
	equal(x, "mode", a.Mode, 0o6755)
	if a.CtimeNs <= before.CtimeNs || a.MtimeNs != before.MtimeNs {
		x.tb.Fatalf("times: expected a later change time than %v only, found %v", before, a)
	}
	_, err := other.chmod(f, 0o777)
	x.refused(sys.Permission, err)
	_, err = x.chmod(f, 0o10000)
	x.refused(sys.Invalid, err)
	// Who is not in the group cannot make a program run as the group.
	equal(x, "mode by a stranger to the group", x.must(x.as(1000, 1).chmod(f, 0o2755)).Mode, 0o755)
	equal(x, "mode by root", x.must(x.chmod(f, 0o2755)).Mode, 0o2755)
	_, err = x.chmod(&metapb.Attr{Ino: 9999}, 0o644)
	x.refused(sys.Stale, err)

	// A kernel clears setuid and setgid for a writer who is not the owner.
	x.must(x.chmod(f, 0o6777))
	equal(x, "mode after a drop", x.must(other.chmod(f, 0o777)).Mode, 0o777)
	_, err = other.chmod(f, 0o776)
	x.refused(sys.Permission, err)
}

func testChown(x *tree) {
	root := x.root()
	f := x.create(root, "f", 0o755)
	x.must(x.chown(f, 1000, 100))
	owner, other := x.as(1000, 100, 300), x.as(2000, 100, 300)
	for _, c := range []struct {
		who      *tree
		uid, gid int
		ok       bool
	}{
		{owner, 2000, -1, false}, {owner, 1000, -1, true}, {owner, -1, 300, true}, {owner, 1000, 100, true},
		{owner, -1, 400, false}, {owner, 2000, 300, false}, {other, -1, 300, false}, {other, 1000, -1, false},
		{other, -1, 100, false}, {x, 5, 6, true}, {x, 1000, 100, true},
	} {
		a, err := c.who.chown(f, c.uid, c.gid)
		if !c.ok {
			x.refused(sys.Permission, err)
			continue
		}
		x.must(a, err)
		if now := x.get(f); c.uid >= 0 && now.Uid != uint32(c.uid) || c.gid >= 0 && now.Gid != uint32(c.gid) {
			x.tb.Fatalf("expected the owner %d:%d, found %v", c.uid, c.gid, now)
		}
	}
	x.must(x.chown(f, 1000, 400))
	x.must(owner.chown(f, -1, 400)) // the group it has already
	x.must(x.chown(f, 1000, 100))

	for _, c := range []struct {
		who          *tree
		mode, expect uint32
	}{{owner, 0o6755, 0o755}, {owner, 0o6745, 0o2745}, {x, 0o6755, 0o755}} {
		x.must(x.chmod(f, c.mode))
		equal(x, "mode after chown", x.must(c.who.chown(f, -1, 300)).Mode, c.expect)
		x.must(x.chown(f, 1000, 100))
	}
	d := x.mkdir(root, "d", 0o755)
	x.must(x.chmod(d, 0o2755))
	equal(x, "mode of a directory after chown", x.must(x.chown(d, 1, 1)).Mode, 0o2755)
	res, err := x.setAttr(&metapb.SetAttr{Ino: f.Ino, Uid: ptr[uint32](7), Mode: ptr[uint32](0o4755)})
	equal(x, "mode given by root with an owner", x.must(res, err).Mode, 0o4755)
}

func testTimes(x *tree) {
	root := x.root()
	f := x.create(root, "f", 0o600)
	x.must(x.chown(f, 1000, 100))
	owner, writer, other := x.as(1000, 100), x.as(2000, 100), x.as(3000, 300)
	given := &metapb.SetAttr{Ino: f.Ino, AtimeNs: ptr[int64](5), MtimeNs: ptr[int64](-7)}
	now := &metapb.SetAttr{Ino: f.Ino, AtimeNow: true, MtimeNow: true}
	before := x.get(f)
	a := x.must(owner.setAttr(given))
	equal(x, "access time", a.AtimeNs, 5)
	equal(x, "modification time", a.MtimeNs, -7)
	if a.CtimeNs <= before.CtimeNs || a.Version != before.Version {
		x.tb.Fatalf("expected a later change time and the version of %v, found %v", before, a)
	}
	_, err := writer.setAttr(now)
	x.refused(sys.Access, err)
	x.must(x.chmod(f, 0o620))
	a = x.must(writer.setAttr(now))
	if a.AtimeNs != a.MtimeNs || a.AtimeNs != a.CtimeNs || a.AtimeNs <= before.AtimeNs {
		x.tb.Fatalf("expected all times to be now, found %v", a)
	}
	_, err = writer.setAttr(given)
	x.refused(sys.Permission, err)
	_, err = other.setAttr(now)
	x.refused(sys.Access, err)
	_, err = writer.setAttr(&metapb.SetAttr{Ino: f.Ino, AtimeNow: true, MtimeNs: ptr[int64](5)})
	x.refused(sys.Permission, err)
	a = x.must(owner.setAttr(&metapb.SetAttr{Ino: f.Ino, AtimeNow: true, AtimeNs: ptr[int64](5)}))
	if a.AtimeNs == 5 {
		x.tb.Fatalf("now wins over a given time: found %v", a)
	}
	before = x.get(f)
	x.must(owner.setAttr(&metapb.SetAttr{Ino: f.Ino}))
	equal(x, "nothing asked for", x.get(f).String(), before.String())
}

func testTruncatePermission(x *tree) {
	root := x.root()
	f := x.create(root, "f", 0o604)
	u := x.as(1000, 100)
	_, err := u.truncate(f, 5)
	x.refused(sys.Access, err)
	before := x.get(f)
	a := x.must(u.setAttr(&metapb.SetAttr{Ino: f.Ino, Size: ptr[uint64](5), MtimeNow: true, Open: true}))
	equal(x, "size", a.Size, 5)
	if a.MtimeNs <= before.MtimeNs || a.CtimeNs != a.MtimeNs || a.Version <= before.Version {
		x.tb.Fatalf("expected later times and a higher version than %v, found %v", before, a)
	}
	x.must(x.chmod(f, 0o606))
	x.must(u.truncate(f, 3))
	_, err = x.truncate(x.mkdir(root, "d", 0o755), 0)
	x.refused(sys.IsDir, err)
	_, err = x.truncate(f, 1<<43+1)
	x.refused(sys.FileTooLarge, err)
	_, err = x.truncate(f, 1<<63)
	x.refused(sys.FileTooLarge, err)
	x.must(x.truncate(f, 1<<43))
	before = x.get(f)
	if a := x.must(x.truncate(f, 1<<43)); a.MtimeNs <= before.MtimeNs {
		x.tb.Fatalf("a truncation to the same size: expected a later time than %v, found %v", before, a)
	}
	// Of several changes all are made or none.
	_, err = u.setAttr(&metapb.SetAttr{Ino: f.Ino, Size: ptr[uint64](1), Mode: ptr[uint32](0o777)})
	x.refused(sys.Permission, err)
	equal(x, "size", x.get(f).Size, 1<<43)
}

func testWriteClearsSetuid(x *tree) {
	root := x.root()
	f := x.create(root, "f", 0o777)
	x.must(x.chown(f, 1000, 100))
	writes := map[string]func(*tree){
		"commit": func(u *tree) { x.must(u.commit(&metapb.Commit{Ino: f.Ino, Inline: []byte("x")})) },
		"size":   func(u *tree) { x.must(u.commit(&metapb.Commit{Ino: f.Ino, Size: ptr[uint64](10)})) },
		"trunc":  func(u *tree) { x.must(u.truncate(f, 5)) },
		"falloc": func(u *tree) {
			x.must(u.fallocate(&metapb.Fallocate{Ino: f.Ino, Len: 5, Zero: true, KeepSize: true}))
		},
	}
	for name, write := range writes {
		for _, c := range []struct {
			who          *tree
			mode, expect uint32
		}{
			{x.as(1000, 100), 0o6777, 0o777}, {x.as(2000, 200), 0o6777, 0o777}, {x.as(2000, 200), 0o2767, 0o2767},
			{x, 0o6777, 0o6777},
		} {
			x.must(x.chmod(f, c.mode))
			write(c.who)
			equal(x, "mode after "+name, x.get(f).Mode, c.expect)
		}
	}
}
