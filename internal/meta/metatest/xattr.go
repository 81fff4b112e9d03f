package metatest

import (
	"fmt"
	"strings"

	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// flags of setXattr, as in setxattr(2).
const (
	xattrCreate  = 1
	xattrReplace = 2
)

func (x *tree) setXattr(a *metapb.Attr, name, value string, flags int) (*metapb.Result, error) {
	return x.do(&metapb.Command{Op: &metapb.Command_SetXattr{SetXattr: &metapb.SetXattr{
		Ino: a.Ino, Name: []byte(name), Value: []byte(value),
		Create: flags&xattrCreate != 0, Replace: flags&xattrReplace != 0,
	}}})
}

func (x *tree) removeXattr(a *metapb.Attr, name string) (*metapb.Result, error) {
	return x.do(&metapb.Command{Op: &metapb.Command_RemoveXattr{
		RemoveXattr: &metapb.RemoveXattr{Ino: a.Ino, Name: []byte(name)},
	}})
}

func (x *tree) getXattr(a *metapb.Attr, name string) (string, error) {
	ans, err := x.query(&metapb.Query{Op: &metapb.Query_GetXattr{
		GetXattr: &metapb.GetXattr{Ino: a.Ino, Name: []byte(name)},
	}})
	return string(ans.GetValue()), err
}

func (x *tree) listXattr(a *metapb.Attr) string {
	x.tb.Helper()
	ans, err := x.query(&metapb.Query{Op: &metapb.Query_ListXattr{ListXattr: &metapb.ListXattr{Ino: a.Ino}}})
	x.must(nil, err)
	var names []string
	for _, n := range ans.Names {
		names = append(names, string(n))
	}
	return strings.Join(names, " ")
}

func testXattr(x *tree) {
	root := x.root()
	f := x.create(root, "f", 0o644)
	_, err := x.getXattr(f, "user.a")
	x.refused(sys.NoXattr, err)
	equal(x, "names", x.listXattr(f), "")
	_, err = x.setXattr(f, "user.a", "1", xattrReplace)
	x.refused(sys.NoXattr, err)
	before := x.get(f)
	a := x.must(x.setXattr(f, "user.b", "1", 0))
	equal(x, "attributes", a.Xattrs, 1)
	if a.CtimeNs <= before.CtimeNs || a.MtimeNs != before.MtimeNs || a.Version != before.Version {
		x.tb.Fatalf("expected a later change time only than %v, found %v", before, a)
	}
	x.must(x.setXattr(f, "user.a", "", xattrCreate))
	_, err = x.setXattr(f, "user.b", "2", xattrCreate)
	x.refused(sys.Exist, err)
	x.must(x.setXattr(f, "user.b", "\x00\xff", xattrReplace))
	x.must(x.setXattr(f, "user.\xff", "x", 0))
	equal(x, "names", x.listXattr(f), "user.a user.b user.\xff")
	value, err := x.getXattr(f, "user.b")
	x.must(nil, err)
	equal(x, "value", value, "\x00\xff")
	value, err = x.getXattr(f, "user.a")
	x.must(nil, err)
	equal(x, "empty value", value, "")

	_, err = x.removeXattr(f, "user.none")
	x.refused(sys.NoXattr, err)
	x.must(x.removeXattr(f, "user.b"))
	x.must(x.removeXattr(f, "user.a"))
	equal(x, "attributes", x.must(x.removeXattr(f, "user.\xff")).Xattrs, 0)
	equal(x, "names", x.listXattr(f), "")
	gone := &metapb.Attr{Ino: 9999}
	_, err = x.setXattr(gone, "user.a", "", 0)
	x.refused(sys.Stale, err)
	_, err = x.removeXattr(gone, "user.a")
	x.refused(sys.Stale, err)
	_, err = x.getXattr(gone, "user.a")
	x.refused(sys.Stale, err)

	d := x.mkdir(root, "d", 0o755)
	x.must(x.setXattr(d, "user.a", "1", 0))
	x.must(x.rmdir(root, "d"))
}

func testXattrNamespaces(x *tree) {
	root := x.root()
	f := x.create(root, "f", 0o644)
	d := x.mkdir(root, "d", 0o777)
	l := x.must(x.make(sys.TypeSymlink, root, "l", 0o777))
	x.must(x.chown(f, 1000, 100))
	owner, other := x.as(1000, 100), x.as(2000, 200)
	x.must(x.chmod(d, 0o1777))
	for _, c := range []struct {
		who  *tree
		a    *metapb.Attr
		name string
		kind sys.Kind // Other: allowed
	}{
		{owner, f, "user.a", sys.Other}, {other, f, "user.a", sys.Access}, {x, l, "user.a", sys.Permission},
		{other, d, "user.a", sys.Permission}, {x, d, "user.a", sys.Other},
		{owner, f, "trusted.a", sys.Permission}, {x, f, "trusted.a", sys.Other}, {x, l, "trusted.a", sys.Other},
		{owner, f, "security.a", sys.Permission}, {x, f, "security.capability", sys.Other},
		{owner, f, "system.posix_acl_access", sys.Other}, {other, f, "system.posix_acl_access", sys.Permission},
		{x, f, "system.posix_acl_default", sys.Access}, {x, d, "system.posix_acl_default", sys.Other},
		{x, f, "system.other", sys.NotSupported}, {x, f, "nothing", sys.NotSupported},
		{x, f, "user.", sys.Invalid}, {x, f, "", sys.Invalid}, {x, f, "user.a\x00", sys.Invalid},
	} {
		_, err := c.who.setXattr(c.a, c.name, "v", 0)
		if c.kind == sys.Other {
			x.must(nil, err)
			continue
		}
		x.refused(c.kind, err)
		_, err = c.who.removeXattr(c.a, c.name)
		x.refused(c.kind, err)
	}
	equal(x, "names for root", x.listXattr(f), "security.capability system.posix_acl_access trusted.a user.a")
	equal(x, "names for others", other.listXattr(f), "security.capability system.posix_acl_access user.a")
	_, err := other.getXattr(f, "trusted.a")
	x.refused(sys.NoXattr, err)
	_, err = other.getXattr(f, "security.capability")
	x.must(nil, err)
	x.must(x.chmod(f, 0o600))
	_, err = other.getXattr(f, "user.a")
	x.refused(sys.Access, err)
	_, err = other.getXattr(f, "system.posix_acl_access")
	x.must(nil, err)
}

func testXattrLimits(x *tree) {
	f := x.create(x.root(), "f", 0o644)
	longest := "user." + strings.Repeat("n", sys.XattrName-5)
	largest := strings.Repeat("v", sys.XattrValue)
	x.must(x.setXattr(f, longest, largest, 0))
	value, err := x.getXattr(f, longest)
	x.must(nil, err)
	equal(x, "length of the value", len(value), sys.XattrValue)
	_, err = x.setXattr(f, longest+"n", "", 0)
	x.refused(sys.Range, err)
	_, err = x.setXattr(f, "user.a", largest+"v", 0)
	x.refused(sys.TooBig, err)
	for i := range 3 {
		_, err = x.setXattr(f, fmt.Sprintf("user.%d", i), largest, 0)
	}
	x.refused(sys.NoSpace, err)
	equal(x, "attributes", x.get(f).Xattrs, 3)

	g := x.create(x.root(), "g", 0o644)
	for i, err := 0, error(nil); err == nil; i++ {
		if _, err = x.setXattr(g, fmt.Sprintf("user.%0250d", i), "", 0); err != nil {
			x.refused(sys.NoSpace, err)
			equal(x, "attributes", i, meta.XattrListMax/256)
		}
	}
}
