package mysql

import (
	"bytes"
	"context"
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/meta/mysql/mysqltest"
	"github.com/koinon/koinon/internal/sys"
)

// checkCache holds all that an idle leader knows against the database.
func checkCache(t *testing.T, l *Leader) {
	t.Helper()
	if !l.loaded || l.fenced != nil {
		return
	}
	db := &Tx{ctx: context.Background(), st: l.e.st}
	same := func(what string, known, found proto.Message, err error) {
		t.Helper()
		if err != nil || !proto.Equal(known, found) {
			t.Errorf("%s: the leader knows %v, the database has %v, %v", what, known, found, err)
		}
	}
	for ino, a := range l.cache.inodes {
		found, err := db.Inode(ino)
		same(fmt.Sprint("inode ", ino), a, found, err)
	}
	for c, n := range l.cache.counters {
		if found, err := db.Counter(c, 0); err != nil || found != n {
			t.Errorf("counter %v: the leader knows %d, the database has %d, %v", c, n, found, err)
		}
	}
	for ino := range l.cache.free {
		found, err := db.Inode(ino)
		same(fmt.Sprint("inode ", ino), (*metapb.Attr)(nil), found, err)
	}
	for ino := range l.cache.bare {
		found, err := db.Chunk(ino, 0)
		same(fmt.Sprint("chunk of ", ino), (*metapb.Chunk)(nil), found, err)
	}
	total := 0
	for parent, dir := range l.cache.dirs {
		total += len(dir.known)
		for name, d := range dir.known {
			found, err := db.Dentry(parent, []byte(name))
			same(fmt.Sprintf("entry %q of %d", name, parent), d, found, err)
		}
		n := 0
		err := db.ScanDentries(parent, 0, func([]byte, *metapb.Dentry) bool { n++; return true })
		if err != nil || dir.whole && n != len(dir.known) {
			t.Errorf("directory %d: the leader knows all %d names, the database has %d, %v", parent, len(dir.known), n, err)
		}
	}
	if total != l.cache.names {
		t.Errorf("expected a count of %d names, found %d", total, l.cache.names)
	}
}

// What a leader has made it need not ask for: a file in a directory of its own
// is made, written and removed, and the directory too, without a query.
func testKnown(t *testing.T, s *mysqltest.Server) {
	e, ctx := open(t, s.Create(t, "known")), context.Background()
	l := lead(t, e, 1)
	do := func(cmd *metapb.Command) *metapb.Result {
		t.Helper()
		r, err := l.Do(ctx, &meta.Request{Body: body(cmd)})
		if err != nil || result(r).Failure != nil {
			t.Fatal(result(r).GetFailure(), err)
		}
		return result(r)
	}
	queries := func() (n int) {
		var name string
		if err := e.db.QueryRow("SHOW GLOBAL STATUS LIKE 'Com_stmt_execute'").Scan(&name, &n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	do(format())
	mkdir := mknod("d")
	mkdir.GetMknod().Type = uint32(sys.TypeDir)
	dir := do(mkdir).Attr.Ino
	before := 0
	for i := range 3 {
		if i == 1 { // after the first one, for which counters are read
			before = queries()
		}
		file := mknod(fmt.Sprint("f", i))
		file.GetMknod().Parent = dir
		ino := do(file).Attr.Ino
		do(&metapb.Command{Op: &metapb.Command_Commit{Commit: &metapb.Commit{Ino: ino, Inline: bytes.Repeat([]byte("x"), 100)}}})
		do(&metapb.Command{Op: &metapb.Command_Unlink{Unlink: &metapb.Unlink{Parent: dir, Name: file.GetMknod().Name}}})
		// The same with a number that was given out before.
		free := do(&metapb.Command{Op: &metapb.Command_AllocInos{AllocInos: &metapb.AllocInos{Count: 5}}}).FirstIno
		file.GetMknod().Ino, file.GetMknod().Body = free+uint64(i), &metapb.Commit{Inline: []byte("x")}
		do(file)
		do(&metapb.Command{Op: &metapb.Command_Unlink{Unlink: &metapb.Unlink{Parent: dir, Name: file.GetMknod().Name}}})
	}
	do(&metapb.Command{Op: &metapb.Command_Rmdir{Rmdir: &metapb.Rmdir{Parent: uint64(sys.RootIno), Name: []byte("d")}}})
	if n := queries() - before; n != 0 {
		t.Errorf("expected no query, found %d", n)
	}
	checkCache(t, l)

	// The leader says from what it knows, and from the tables, how little is to be a row.
	stat := &metapb.Query{Op: &metapb.Query_StatFs{StatFs: &metapb.StatFS{}}}
	if a := l.answer(stat); a != nil && a.InlineMax != inlineMax {
		t.Errorf("expected files of %d bytes among the rows, found %d", inlineMax, a.InlineMax)
	}
	l.cache.reset()
	if a, err := l.Query(ctx, stat); err != nil || a.InlineMax != inlineMax {
		t.Errorf("expected files of %d bytes among the rows, found %v, %v", inlineMax, a, err)
	}

	// A row that somebody else has made is found.
	do(mkdir)
	if _, err := e.db.Exec("INSERT INTO entries (parent, cookie, name, inode, type) SELECT 1, 1000, x'6e6577', inode, type FROM entries WHERE name = x'64'"); err != nil {
		t.Fatal(err)
	}
	l.cache.keepEntry(sys.RootIno, "new", nil)
	r, err := l.Do(ctx, &meta.Request{Body: body(mknod("new"))})
	if f := result(r).GetFailure(); err != nil || sys.Kind(f.GetKind()) != sys.Exist {
		t.Errorf("an entry that exists expected, found %v, %v", f, err)
	}
	checkCache(t, l)
}

// What is known stays within its bound, and is forgotten when a load may bring
// rows that were not made in order.
func TestCacheForgets(t *testing.T) {
	c := newCache()
	c.counters[meta.CounterIno] = 99
	w := newWrites()
	for ino := sys.Ino(90); ino < 110; ino++ {
		w.inodes[ino] = &metapb.Attr{Ino: uint64(ino), Type: uint32(sys.TypeDir)}
	}
	c.learn(w)
	for ino, whole := range map[sys.Ino]bool{99: false, 100: true} { // 99 was there before, with what it has
		if _, known := c.entry(ino, []byte("x")); known != whole {
			t.Errorf("directory %d: known %v", ino, known)
		}
	}
	for i := range 3 * cacheMax {
		c.keepEntry(sys.Ino(100+i%7), fmt.Sprint(i), &metapb.Dentry{})
		c.keep(sys.Ino(i), &metapb.Attr{})
		if c.names > cacheMax || len(c.inodes) > cacheMax {
			t.Fatalf("%d names, %d inodes", c.names, len(c.inodes))
		}
	}
	w = newWrites()
	for ino := sys.Ino(1000); ino < 1000+2*cacheMax; ino++ {
		w.inodes[ino] = &metapb.Attr{Ino: uint64(ino), Type: uint32(sys.TypeDir)}
	}
	c.learn(w)
	total := 0
	for _, dir := range c.dirs {
		total += len(dir.known)
	}
	if len(c.dirs) > cacheMax || c.names != total {
		t.Errorf("%d directories, %d names of %d", len(c.dirs), total, c.names)
	}
	w = newWrites()
	w.counters[meta.CounterBatches] = 1
	w.inodes[500] = &metapb.Attr{Ino: 500, Type: uint32(sys.TypeDir)}
	c.learn(w)
	if len(c.dirs)+len(c.inodes)+len(c.bare)+len(c.counters)+c.names != 0 {
		t.Error("something is still known after a step of a load")
	}
}
