package metatest

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"pgregory.net/rapid"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// testModel does random operations on the tree and on a simple model of one,
// and compares every answer and, at the end, everything.
func testModel(x *tree) {
	t, ok := x.tb.(rapid.TB)
	if !ok {
		x.tb.Fatalf("expected a test that can run properties, found %T", x.tb)
		return
	}
	round := 0
	rapid.Check(t, func(rt *rapid.T) {
		round++
		on := &tree{tb: rt, c: x.c}
		top := on.mkdir(on.root(), fmt.Sprintf("round%d", round), 0o777)
		m := &model{t: rt, x: on, root: &node{typ: sys.TypeDir, ino: top.Ino, mode: 0o777, names: map[string]*node{}}}
		m.root.parent = m.root
		for range rapid.IntRange(1, 60).Draw(rt, "steps") {
			m.step()
		}
		m.compare(m.root)
		on.check()
		m.clear(m.root)
		on.must(on.rmdir(on.root(), fmt.Sprintf("round%d", round)))
		on.purge(4096)
		on.check()
	})
}

// node is an inode of the model. It is owned by whoever made it.
type node struct {
	typ    sys.FileType
	ino    uint64
	mode   uint32
	uid    uint32
	size   uint64
	links  uint32
	names  map[string]*node // of a directory
	parent *node            // of a directory
}

// String is for the log of a failure.
func (n *node) String() string { return fmt.Sprintf("inode %d", n.ino) }

func (n *node) dir() bool { return n.typ == sys.TypeDir }

// model is a tree as simple as can be.
type model struct {
	t    *rapid.T
	x    *tree
	root *node
}

var modelNames = []string{"a", "b", "c", "\xfe"}

// some draws a directory or, rarely, another inode, and a name.
func (m *model) some(label string) (*node, string) {
	dirs, others := []*node{}, []*node{}
	var collect func(n *node)
	collect = func(n *node) {
		dirs = append(dirs, n)
		for _, name := range slices.Sorted(maps.Keys(n.names)) {
			if child := n.names[name]; child.dir() {
				collect(child)
			} else {
				others = append(others, child)
			}
		}
	}
	collect(m.root)
	name := rapid.SampledFrom(modelNames).Draw(m.t, label+" name")
	if len(others) > 0 && rapid.IntRange(0, 19).Draw(m.t, label+" odd") == 0 {
		return rapid.SampledFrom(others).Draw(m.t, label+" other"), name
	}
	return rapid.SampledFrom(dirs).Draw(m.t, label+" dir"), name
}

func (m *model) attr(n *node) *metapb.Attr { return &metapb.Attr{Ino: n.ino} }

// agree compares a refusal with what the model says; kind Other is success.
func (m *model) agree(what string, want sys.Kind, err error) bool {
	m.t.Helper()
	m.t.Logf("%s: %v", what, err)
	if err == nil && want == sys.Other {
		return true
	}
	if sys.KindOf(err) != want || err == nil {
		m.t.Fatalf("%s: expected %q, found %v", what, want, err)
	}
	return false
}

func (m *model) step() {
	uid := rapid.SampledFrom([]uint32{0, 0, 1, 2}).Draw(m.t, "uid")
	switch rapid.IntRange(0, 9).Draw(m.t, "operation") {
	case 0, 1:
		m.make(uid, rapid.SampledFrom([]sys.FileType{sys.TypeRegular, sys.TypeSymlink, sys.TypeFIFO}).Draw(m.t, "type"))
	case 2, 3:
		m.make(uid, sys.TypeDir)
	case 4:
		m.remove(uid, true)
	case 5:
		m.remove(uid, false)
	case 6:
		m.link(uid)
	case 7, 8:
		m.rename(uid)
	case 9:
		m.change(uid)
	}
}

// can says whether the mode lets uid do what want asks for. Groups are all 0.
func (n *node) can(uid, want uint32) bool {
	bits := n.mode
	if uid == n.uid {
		bits >>= 6
	}
	return uid == 0 || bits&want == want
}

// enter is the first check of everything that names an entry.
func (n *node) enter(uid uint32) sys.Kind {
	switch {
	case !n.dir():
		return sys.NotDir
	case !n.can(uid, 1):
		return sys.Access
	}
	return sys.Other
}

// stuck says whether a sticky directory keeps uid from taking child away.
func (n *node) stuck(uid uint32, child *node) bool {
	return n.mode&sys.ModeSticky != 0 && uid != 0 && uid != n.uid && uid != child.uid
}

func (m *model) as(uid uint32) *tree { return m.x.as(uid, 100+uid) }

func (m *model) make(uid uint32, typ sys.FileType) {
	dir, name := m.some("in")
	mode := rapid.SampledFrom([]uint32{0o777, 0o755, 0o700, 0o1777}).Draw(m.t, "mode")
	want := dir.enter(uid)
	if want == sys.Other {
		switch {
		case dir.names[name] != nil:
			want = sys.Exist
		case !dir.can(uid, 3):
			want = sys.Access
		}
	}
	res, err := m.as(uid).make(typ, m.attr(dir), name, mode)
	if !m.agree(fmt.Sprintf("make type %d %q in %d as %d", typ, name, dir.ino, uid), want, err) {
		return
	}
	n := &node{typ: typ, ino: res.Attr.Ino, mode: mode, uid: uid, links: 1}
	if typ == sys.TypeSymlink {
		n.size = 6
	}
	if n.dir() {
		n.names, n.parent = map[string]*node{}, dir
	}
	dir.names[name] = n
}

func (m *model) remove(uid uint32, isDir bool) {
	dir, name := m.some("from")
	want := dir.enter(uid)
	var child *node
	if want == sys.Other {
		child = dir.names[name]
		switch {
		case child == nil:
			want = sys.NotExist
		case !dir.can(uid, 3):
			want = sys.Access
		case dir.stuck(uid, child):
			want = sys.Permission
		case isDir && !child.dir():
			want = sys.NotDir
		case !isDir && child.dir():
			want = sys.IsDir
		case isDir && len(child.names) > 0:
			want = sys.NotEmpty
		}
	}
	do := m.as(uid).unlink
	if isDir {
		do = m.as(uid).rmdir
	}
	_, err := do(m.attr(dir), name)
	if m.agree(fmt.Sprintf("remove %q from %d as %d", name, dir.ino, uid), want, err) {
		child.links--
		delete(dir.names, name)
	}
}

func (m *model) link(uid uint32) {
	from, old := m.some("from")
	if from.names[old] == nil {
		return
	}
	n := from.names[old]
	dir, name := m.some("to")
	want := dir.enter(uid)
	if want == sys.Other {
		switch {
		case n.dir():
			want = sys.Permission
		case dir.names[name] != nil:
			want = sys.Exist
		case !dir.can(uid, 3):
			want = sys.Access
		}
	}
	_, err := m.as(uid).link(m.attr(n), m.attr(dir), name)
	if m.agree(fmt.Sprintf("link %d as %q in %d as %d", n.ino, name, dir.ino, uid), want, err) {
		n.links++
		dir.names[name] = n
	}
}

// within says whether n is dir or above it.
func (n *node) above(dir *node) bool {
	for ; ; dir = dir.parent {
		if dir == n {
			return true
		}
		if dir.parent == dir {
			return false
		}
	}
}

func (m *model) rename(uid uint32) {
	d1, n1 := m.some("from")
	d2, n2 := m.some("to")
	f := rapid.SampledFrom([]renameFlags{plain, plain, noReplace, exchange}).Draw(m.t, "flags")
	want := m.renameWant(uid, d1, n1, d2, n2, f)
	_, err := m.as(uid).rename(m.attr(d1), n1, m.attr(d2), n2, f)
	what := fmt.Sprintf("rename %q in %d to %q in %d, flags %d, as %d", n1, d1.ino, n2, d2.ino, f, uid)
	if !m.agree(what, want, err) {
		return
	}
	a, b := d1.names[n1], d2.names[n2]
	if a == b {
		return
	}
	d2.names[n2] = a
	if f == exchange {
		d1.names[n1] = b
		if b.dir() {
			b.parent = d1
		}
	} else {
		delete(d1.names, n1)
		if b != nil {
			b.links--
		}
	}
	if a.dir() {
		a.parent = d2
	}
}

func (m *model) renameWant(uid uint32, d1 *node, n1 string, d2 *node, n2 string, f renameFlags) sys.Kind {
	for _, d := range []*node{d1, d2} {
		if want := d.enter(uid); want != sys.Other {
			return want
		}
	}
	a, b := d1.names[n1], d2.names[n2]
	switch {
	case a == nil:
		return sys.NotExist
	case !d1.can(uid, 3):
		return sys.Access
	case d1.stuck(uid, a):
		return sys.Permission
	case !d2.can(uid, 3):
		return sys.Access
	case b != nil && d2.stuck(uid, b):
		return sys.Permission
	case b != nil && f == noReplace:
		return sys.Exist
	case b == nil && f == exchange:
		return sys.NotExist
	case a == b:
		return sys.Other
	}
	if want := moveWant(uid, a, d1, d2); want != sys.Other {
		return want
	}
	if f == exchange {
		return moveWant(uid, b, d2, d1)
	}
	switch {
	case b == nil:
	case a.dir() && !b.dir():
		return sys.NotDir
	case !a.dir() && b.dir():
		return sys.IsDir
	case b.dir() && len(b.names) > 0:
		return sys.NotEmpty
	}
	return sys.Other
}

func moveWant(uid uint32, a, from, to *node) sys.Kind {
	switch {
	case !a.dir() || from == to:
	case !a.can(uid, 2):
		return sys.Access
	case a.above(to):
		return sys.Invalid
	}
	return sys.Other
}

// change is chmod, chown or truncate.
func (m *model) change(uid uint32) {
	dir, name := m.some("in")
	n := dir
	if dir.dir() && dir.names[name] != nil {
		n = dir.names[name]
	}
	want := sys.Other
	switch rapid.IntRange(0, 2).Draw(m.t, "change") {
	case 0:
		mode := rapid.SampledFrom([]uint32{0o777, 0o700, 0o555, 0o1777}).Draw(m.t, "mode")
		if uid != 0 && uid != n.uid {
			want = sys.Permission
		}
		_, err := m.as(uid).chmod(m.attr(n), mode)
		if m.agree(fmt.Sprintf("chmod %d to %o as %d", n.ino, mode, uid), want, err) {
			n.mode = mode
		}
	case 1:
		if uid != 0 {
			want = sys.Permission
		}
		_, err := m.as(uid).chown(m.attr(n), int(uid)+1, -1)
		if m.agree(fmt.Sprintf("chown %d as %d", n.ino, uid), want, err) {
			n.uid = uid + 1
		}
	case 2:
		size := rapid.Uint64Range(0, 1<<30).Draw(m.t, "size")
		switch {
		case n.dir():
			want = sys.IsDir
		case n.typ != sys.TypeRegular:
			want = sys.Invalid
		case !n.can(uid, 2):
			want = sys.Access
		}
		_, err := m.as(uid).truncate(m.attr(n), size)
		if m.agree(fmt.Sprintf("truncate %d to %d as %d", n.ino, size, uid), want, err) {
			n.size = size
		}
	}
}

// compare looks whether a directory of the tree is as in the model, with all
// below.
func (m *model) compare(dir *node) {
	names := slices.Sorted(maps.Keys(dir.names))
	found := m.x.list(m.attr(dir))
	slices.Sort(found)
	if strings.Join(found, "/") != strings.Join(names, "/") {
		m.t.Fatalf("names in %d: expected %q, found %q", dir.ino, names, found)
	}
	for _, name := range names {
		n := dir.names[name]
		a := m.x.lookup(m.attr(dir), name)
		links := n.links
		if n.dir() {
			links = 2
			for _, child := range n.names {
				if child.dir() {
					links++
				}
			}
		}
		if a.Ino != n.ino || a.Type != uint32(n.typ) || a.Mode != n.mode || a.Uid != n.uid || a.Size != n.size || a.Nlink != links {
			m.t.Fatalf("%q in %d: expected type %d, mode %o, owner %d, size %d, %d links, found %v",
				name, dir.ino, n.typ, n.mode, n.uid, n.size, links, a)
		}
		if n.dir() {
			m.compare(n)
		}
	}
}

// clear removes all that is in a directory.
func (m *model) clear(dir *node) {
	for _, name := range slices.Sorted(maps.Keys(dir.names)) {
		remove := m.x.unlink
		if n := dir.names[name]; n.dir() {
			m.clear(n)
			remove = m.x.rmdir
		}
		m.x.must(remove(m.attr(dir), name))
	}
}
