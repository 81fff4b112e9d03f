package metatest

import (
	"bytes"
	"math"
	"slices"
	"strings"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

func testFormat(x *tree) {
	_, err := x.make(sys.TypeRegular, &metapb.Attr{Ino: uint64(sys.RootIno)}, "f", 0o644)
	x.refused(sys.Busy, err)
	_, err = x.getAttr1(uint64(sys.RootIno))
	x.refused(sys.Busy, err)
	_, err = x.format1(-1)
	x.refused(sys.Invalid, err)

	x.format(0)
	root := x.root()
	equal(x, "type of the root", sys.FileType(root.Type), sys.TypeDir)
	equal(x, "links of the root", root.Nlink, 2)
	equal(x, "parent of the root", root.Parent, uint64(sys.RootIno))
	x.create(root, "f", 0o644)
	x.format(0)
	x.lookup(root, "f")
	equal(x, "number of the next inode", x.create(root, "g", 0o644).Ino, uint64(sys.FirstIno)+1)
}

func testUnknown(x *tree) {
	_, err := x.do(&metapb.Command{})
	x.refused(sys.NotSupported, err)
	_, err = x.query(&metapb.Query{})
	x.refused(sys.NotSupported, err)
}

func testCreate(x *tree) {
	root := x.root()
	x.must(x.chmod(root, 0o777))
	u := x.as(1000, 100)
	res, err := u.make(sys.TypeRegular, root, "f", 0o640)
	a := x.must(res, err)
	equal(x, "created", res.Created, true)
	equal(x, "inode", a.Ino, uint64(sys.FirstIno))
	equal(x, "mode", a.Mode, 0o640)
	equal(x, "owner", a.Uid, 1000)
	equal(x, "group", a.Gid, 100)
	equal(x, "links", a.Nlink, 1)
	equal(x, "size", a.Size, 0)
	if a.MtimeNs == 0 || a.MtimeNs != a.CtimeNs || a.MtimeNs != a.AtimeNs {
		x.tb.Fatalf("times: expected the command's, found %v", a)
	}
	equal(x, "looked up", x.lookup(root, "f").Ino, a.Ino)
	equal(x, "attributes", x.get(a).String(), a.String())

	d := u.mkdir(root, "d", 0o755)
	equal(x, "links of a directory", d.Nlink, 2)
	equal(x, "parent of a directory", d.Parent, root.Ino)
	equal(x, "links of the root", x.root().Nlink, 3)
	u.create(d, "f", 0o600)
	equal(x, "links of a directory with a file", x.get(d).Nlink, 2)
	u.mkdir(d, "d", 0o755)
	equal(x, "links of a directory with a directory", x.get(d).Nlink, 3)
}

func testCreateRefused(x *tree) {
	root := x.root()
	f := x.create(root, "f", 0o644)
	d := x.mkdir(root, "d", 0o755)
	x.mkdir(root, "closed", 0o700)
	for _, typ := range []sys.FileType{sys.TypeRegular, sys.TypeDir, sys.TypeSymlink, sys.TypeFIFO} {
		_, err := x.make(typ, root, "f", 0o644)
		x.refused(sys.Exist, err)
		_, err = x.make(typ, root, "d", 0o644)
		x.refused(sys.Exist, err)
		_, err = x.make(typ, f, "x", 0o644)
		x.refused(sys.NotDir, err)
		_, err = x.make(typ, &metapb.Attr{Ino: 9999}, "x", 0o644)
		x.refused(sys.NotExist, err)
		_, err = x.as(1000, 100).make(typ, d, "x", 0o644)
		x.refused(sys.Access, err)
		_, err = x.as(1000, 100).make(typ, x.lookup(root, "closed"), "x", 0o644)
		x.refused(sys.Access, err)
	}
	// What exists is told even to those who may not write.
	_, err := x.as(1000, 100).make(sys.TypeDir, root, "d", 0o755)
	x.refused(sys.Exist, err)
	_, err = x.make(3, root, "x", 0o644)
	x.refused(sys.Invalid, err)
	_, err = x.make(sys.TypeRegular, root, "x", 0o10644)
	x.refused(sys.Invalid, err)
	equal(x, "names", strings.Join(x.list(root), " "), "f d closed")
}

func testCreateOrOpen(x *tree) {
	root := x.root()
	open := func(name string) (*metapb.Result, error) {
		return x.mknod(&metapb.Mknod{
			Parent: root.Ino, Name: []byte(name), Type: uint32(sys.TypeRegular), Mode: 0o600, OrOpen: true,
			Body: &metapb.Commit{Inline: []byte("new")},
		})
	}
	res, err := open("f")
	a := x.must(res, err)
	equal(x, "created", res.Created, true)
	equal(x, "size", a.Size, 3)
	x.must(x.chmod(a, 0o644))
	res, err = open("f")
	b := x.must(res, err)
	equal(x, "created", res.Created, false)
	equal(x, "inode", b.Ino, a.Ino)
	equal(x, "mode", b.Mode, 0o644)
	equal(x, "version", b.Version, x.get(a).Version)

	x.mkdir(root, "d", 0o755)
	_, err = open("d")
	x.refused(sys.IsDir, err)
	x.must(x.make(sys.TypeSymlink, root, "l", 0o777))
	_, err = open("l")
	x.refused(sys.Exist, err)
	_, err = x.mknod(&metapb.Mknod{Parent: root.Ino, Name: []byte("e"), Type: uint32(sys.TypeDir), OrOpen: true})
	x.refused(sys.Invalid, err)
}

func testCreateWithBody(x *tree) {
	root := x.root()
	res, err := x.mknod(&metapb.Mknod{
		Parent: root.Ino, Name: []byte("f"), Type: uint32(sys.TypeRegular), Mode: 0o644,
		Body: &metapb.Commit{Ino: 4711, Inline: []byte("hello"), InlineOff: 2, Size: ptr[uint64](9)},
	})
	a := x.must(res, err)
	equal(x, "size", a.Size, 9)
	equal(x, "bytes", string(x.inline(a)), "\x00\x00hello")

	id := x.alloc(1, 1)
	res, err = x.mknod(&metapb.Mknod{
		Parent: root.Ino, Name: []byte("g"), Type: uint32(sys.TypeRegular), Mode: 0o644,
		Body: &metapb.Commit{Slices: []*metapb.ChunkSlice{piece(0, 100, 50, id, 0, 50)}},
	})
	a = x.must(res, err)
	equal(x, "size", a.Size, 150)
	equal(x, "longest list", res.Slices, 1)

	_, err = x.mknod(&metapb.Mknod{
		Parent: root.Ino, Name: []byte("h"), Type: uint32(sys.TypeRegular), Mode: 0o644,
		Body: &metapb.Commit{Slices: []*metapb.ChunkSlice{piece(0, 100, 50, id, 0, 50)}},
	})
	x.refused(sys.SessionGone, err)
	_, err = x.mknod(&metapb.Mknod{
		Parent: root.Ino, Name: []byte("h"), Type: uint32(sys.TypeRegular), Mode: 0o644,
		Body: &metapb.Commit{Inline: make([]byte, sys.InlineMax+1)},
	})
	x.refused(sys.NotInline, err)
	x.absent(root, "h")
	_, err = x.mknod(&metapb.Mknod{
		Parent: root.Ino, Name: []byte("h"), Type: uint32(sys.TypeDir), Mode: 0o644, Body: &metapb.Commit{},
	})
	x.refused(sys.Invalid, err)
}

func ptr[T any](v T) *T { return &v }

func testCreateTypes(x *tree) {
	root := x.root()
	x.must(x.chmod(root, 0o777))
	u := x.as(1000, 100)
	for _, typ := range []sys.FileType{sys.TypeFIFO, sys.TypeSocket, sys.TypeChar, sys.TypeBlock} {
		name := string(rune('a' + typ))
		device := typ == sys.TypeChar || typ == sys.TypeBlock
		_, err := u.make(typ, root, name, 0o600)
		if device {
			x.refused(sys.Permission, err)
			x.must(x.mknod(&metapb.Mknod{Parent: root.Ino, Name: []byte(name), Type: uint32(typ), Rdev: 0x103}))
			equal(x, "device", x.lookup(root, name).Rdev, 0x103)
		} else {
			x.must(nil, err)
			_, err = x.mknod(&metapb.Mknod{Parent: root.Ino, Name: []byte("x"), Type: uint32(typ), Rdev: 1})
			x.refused(sys.Invalid, err)
		}
		a := x.lookup(root, name)
		equal(x, "type", sys.FileType(a.Type), typ)
		_, err = x.truncate(a, 1)
		x.refused(sys.Invalid, err)
		_, err = x.commit(&metapb.Commit{Ino: a.Ino, Inline: []byte("x")})
		x.refused(sys.Invalid, err)
	}
}

func testNames(x *tree) {
	root := x.root()
	longest := strings.Repeat("n", sys.NameMax)
	good := []string{"a", "...", "..a", " ", "\n", "\xff\xfe", "\x01", "ä", "a\\b", longest, "\xed\xa0\x80", "*"}
	for _, name := range good {
		a := x.create(root, name, 0o644)
		equal(x, "inode of "+name, x.lookup(root, name).Ino, a.Ino)
	}
	equal(x, "names", strings.Join(x.list(root), "|"), strings.Join(good, "|"))
	x.must(x.rename(root, longest, root, "\xff", plain))
	x.must(x.unlink(root, "\xff"))
	x.absent(root, "\xff")

	for _, bad := range []struct {
		name string
		kind sys.Kind
	}{
		{"", sys.Invalid}, {".", sys.Invalid}, {"..", sys.Invalid}, {"a/b", sys.Invalid}, {"/", sys.Invalid},
		{"a\x00", sys.Invalid}, {strings.Repeat("n", sys.NameMax+1), sys.NameTooLong},
		{strings.Repeat("n", 70000), sys.NameTooLong},
	} {
		_, err := x.make(sys.TypeRegular, root, bad.name, 0o644)
		x.refused(bad.kind, err)
		_, err = x.lookup1(root, bad.name)
		x.refused(bad.kind, err)
		_, err = x.unlink(root, bad.name)
		x.refused(bad.kind, err)
		_, err = x.rmdir(root, bad.name)
		x.refused(bad.kind, err)
		_, err = x.rename(root, "a", root, bad.name, plain)
		x.refused(bad.kind, err)
		_, err = x.rename(root, bad.name, root, "b", plain)
		x.refused(bad.kind, err)
		_, err = x.link(x.lookup(root, "a"), root, bad.name)
		x.refused(bad.kind, err)
	}
}

func testSetgidDirectory(x *tree) {
	root := x.root()
	d := x.mkdir(root, "d", 0o777)
	x.must(x.chown(d, 1, 500))
	x.must(x.chmod(d, 0o2777))
	u := x.as(1000, 100)
	equal(x, "group of a file", u.create(d, "f", 0o644).Gid, 500)
	sub := u.mkdir(d, "sub", 0o755)
	equal(x, "group of a directory", sub.Gid, 500)
	equal(x, "mode of a directory", sub.Mode, 0o2755)
	equal(x, "mode of a setgid program", u.create(d, "g", 0o2755).Mode, 0o755)
	equal(x, "mode of a member's setgid program", x.as(1000, 100, 7, 500).create(d, "h", 0o2755).Mode, 0o2755)
	equal(x, "mode of root's setgid program", x.create(d, "i", 0o2755).Mode, 0o2755)
	equal(x, "mode without group execution", u.create(d, "j", 0o2644).Mode, 0o2644)
	equal(x, "group elsewhere", x.create(root, "f", 0o644).Gid, 0)
}

func testDirectoryTimes(x *tree) {
	root := x.root()
	d := x.mkdir(root, "d", 0o755)
	e := x.mkdir(root, "e", 0o755)
	last := x.get(d)
	changed := func(what string) {
		x.tb.Helper()
		now := x.get(d)
		if now.MtimeNs <= last.MtimeNs || now.CtimeNs != now.MtimeNs || now.Version <= last.Version {
			x.tb.Fatalf("%s: expected later times and a higher version than %v, found %v", what, last, now)
		}
		if now.AtimeNs != last.AtimeNs {
			x.tb.Fatalf("%s: expected the same access time as %v, found %v", what, last, now)
		}
		last = now
	}
	f := x.create(d, "f", 0o644)
	changed("create")
	x.must(x.link(f, d, "g"))
	changed("link")
	x.must(x.unlink(d, "g"))
	changed("unlink")
	x.must(x.rename(d, "f", d, "h", plain))
	changed("rename within")
	x.must(x.rename(d, "h", e, "h", plain))
	changed("rename out")
	x.must(x.rename(e, "h", d, "h", plain))
	changed("rename in")
	x.must(x.make(sys.TypeSymlink, d, "l", 0o777))
	changed("symlink")
	x.mkdir(d, "s", 0o755)
	changed("mkdir")
	x.must(x.rmdir(d, "s"))
	changed("rmdir")
	x.must(x.rename(d, "h", d, "l", exchange))
	changed("exchange")
	x.must(x.truncate(f, 10))
	equal(x, "after a change of a file", x.get(d).String(), last.String())
	_, err := x.make(sys.TypeRegular, d, "h", 0o644)
	x.refused(sys.Exist, err)
	equal(x, "after a refusal", x.get(d).String(), last.String())
}

func testSymlink(x *tree) {
	root := x.root()
	make := func(target []byte) (*metapb.Result, error) {
		return x.mknod(&metapb.Mknod{
			Parent: root.Ino, Name: []byte("l"), Type: uint32(sys.TypeSymlink), Mode: 0o777, Target: target,
		})
	}
	for _, bad := range []struct {
		target []byte
		kind   sys.Kind
	}{
		{nil, sys.NotExist}, {[]byte("a\x00"), sys.Invalid},
		{bytes.Repeat([]byte("t"), sys.SymlinkMax+1), sys.NameTooLong},
	} {
		_, err := make(bad.target)
		x.refused(bad.kind, err)
	}
	target := bytes.Repeat([]byte("\xfft/"), sys.SymlinkMax/3)
	a := x.must(make(target))
	equal(x, "size", a.Size, uint64(len(target)))
	if found := x.lookup(root, "l").Target; !slices.Equal(found, target) {
		x.tb.Fatalf("target: expected %q, found %q", target, found)
	}
	_, err := x.mknod(&metapb.Mknod{
		Parent: root.Ino, Name: []byte("f"), Type: uint32(sys.TypeRegular), Target: []byte("t"),
	})
	x.refused(sys.Invalid, err)
}

func testScanInodes(x *tree) {
	root := x.root()
	d := x.mkdir(root, "d", 0o755)
	f := x.create(d, "f", 0o644)
	for chunk := range uint32(40) {
		x.write(f, uint64(chunk)*sys.ChunkSize, 10)
	}
	g := x.create(d, "g", 0o644)
	x.must(x.commit(&metapb.Commit{Ino: g.Ino, Inline: []byte("inline")}))
	var inos []uint64
	chunks := 0
	scan := &metapb.ScanInodes{Limit: 2}
	for {
		ans, err := x.query(&metapb.Query{Op: &metapb.Query_ScanInodes{ScanInodes: scan}})
		x.must(nil, err)
		for i, in := range ans.Inodes {
			if i > 0 || scan.FromChunk == 0 {
				inos = append(inos, in.Attr.Ino)
			}
			chunks += len(in.Chunks)
		}
		if ans.End {
			break
		}
		last := inos[len(inos)-1]
		scan = &metapb.ScanInodes{After: last, Limit: 2, FromChunk: ans.NextChunk}
		if ans.NextChunk != 0 {
			scan.After--
		}
	}
	if want := []uint64{1, 2, 3, 4, d.Ino, f.Ino, g.Ino}; !slices.Equal(inos, want) {
		x.tb.Fatalf("inodes: expected %v, found %v", want, inos)
	}
	equal(x, "chunks", chunks, 41)
	_, err := x.as(1, 1).query(&metapb.Query{Op: &metapb.Query_ScanInodes{ScanInodes: &metapb.ScanInodes{}}})
	x.refused(sys.Permission, err)
	ans, err := x.query(&metapb.Query{Op: &metapb.Query_ScanInodes{ScanInodes: &metapb.ScanInodes{After: math.MaxUint64}}})
	x.must(nil, err)
	equal(x, "end", ans.End, true)
}

func testStatFS(x *tree) {
	stat := func() *metapb.Answer {
		x.tb.Helper()
		ans, err := x.query(&metapb.Query{Op: &metapb.Query_StatFs{StatFs: &metapb.StatFS{}}})
		x.must(nil, err)
		return ans
	}
	root := x.root()
	equal(x, "inodes of an empty tree", stat().UsedInodes, 1)
	equal(x, "bytes of an empty tree", stat().UsedBytes, 0)
	f := x.create(root, "f", 0o644)
	x.mkdir(root, "d", 0o755)
	x.must(x.make(sys.TypeSymlink, root, "l", 0o777)) // 6 bytes
	x.must(x.commit(&metapb.Commit{Ino: f.Ino, Inline: make([]byte, 100)}))
	equal(x, "inodes", stat().UsedInodes, 4)
	equal(x, "bytes", stat().UsedBytes, 106)
	x.must(x.truncate(f, 1<<40))
	equal(x, "bytes", stat().UsedBytes, 1<<40+6)
	x.must(x.truncate(f, 10))
	equal(x, "bytes", stat().UsedBytes, 16)
	x.must(x.unlink(root, "f"))
	equal(x, "bytes before the purge", stat().UsedBytes, 16)
	x.purge(10)
	equal(x, "bytes after the purge", stat().UsedBytes, 6)
	equal(x, "inodes after the purge", stat().UsedInodes, 3)
	x.must(x.rmdir(root, "d"))
	equal(x, "inodes", stat().UsedInodes, 2)
	equal(x, "last inode", stat().LastIno, uint64(sys.FirstIno)+2)
}
