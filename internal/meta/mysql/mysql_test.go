package mysql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/koinon/koinon/internal/engine/enginetest"
	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/meta/metatest"
	"github.com/koinon/koinon/internal/meta/mysql/mysqltest"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/sys"
)

const testCluster = "test"

func open(t *testing.T, url string) *Engine {
	t.Helper()
	e, err := Open(context.Background(), Config{URL: url, Cluster: testCluster})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

func lead(t *testing.T, e *Engine, epoch uint64) *Leader {
	t.Helper()
	l, err := e.Lead(context.Background(), epoch, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l
}

// client is the tree as one leader runs it.
type client struct {
	e *Engine
	l *Leader
}

func (c *client) Do(ctx context.Context, cmd *metapb.Command) (*metapb.Result, error) {
	r, err := c.l.Do(ctx, &meta.Request{Body: body(cmd)})
	if err != nil {
		return nil, err
	}
	res := result(r)
	if res.Failure != nil {
		return nil, res.Failure.Err()
	}
	return res, nil
}

func body(cmd *metapb.Command) []byte {
	raw := pb.Marshal(cmd)
	return raw
}

func result(r meta.Reply) *metapb.Result {
	res := &metapb.Result{}
	if err := pb.Unmarshal(r.Result, res); err != nil {
		panic(err)
	}
	return res
}

func (c *client) Query(ctx context.Context, q *metapb.Query) (*metapb.Answer, error) {
	a, err := c.l.Query(ctx, q)
	if err != nil {
		return nil, err
	}
	if a.Failure != nil {
		return nil, a.Failure.Err()
	}
	return a, nil
}

// flushing is a Tx in one transaction of the database that carries what has
// been written there before everything that is read.
type flushing struct {
	*Tx
	conn *sql.Tx
	e    *Engine
}

func (f *flushing) flush() error {
	s := &script{}
	if err := f.over.write(s, &f.e.tails, f.cache); err != nil {
		return err
	}
	s.cut()
	for _, part := range s.done {
		if _, err := f.conn.Exec(string(part)); err != nil {
			return fmt.Errorf("%s: %w", part, err)
		}
	}
	*f.over = *newWrites()
	f.cache.reset()
	return nil
}

func (f *flushing) ScanDentries(parent sys.Ino, after uint64, fn func(name []byte, d *metapb.Dentry) bool) error {
	if err := f.flush(); err != nil {
		return err
	}
	return f.Tx.ScanDentries(parent, after, fn)
}

func (f *flushing) Inode(ino sys.Ino) (*metapb.Attr, error) {
	if err := f.flush(); err != nil {
		return nil, err
	}
	return f.Tx.Inode(ino)
}

func (f *flushing) NextOwner(after sys.Ino) (sys.Ino, bool, error) {
	if err := f.flush(); err != nil {
		return 0, false, err
	}
	return f.Tx.NextOwner(after)
}

func (f *flushing) AllDentries(parent sys.Ino, cookie uint64, fn func(sys.Ino, []byte, *metapb.Dentry) bool) error {
	if err := f.flush(); err != nil {
		return err
	}
	return f.Tx.AllDentries(parent, cookie, fn)
}

// suites runs the suite of all engines, once on rows in the database and once
// through a leader, all on one server.
func suites(t *testing.T, s *mysqltest.Server) {
	e := open(t, s.Create(t, "tree"))
	t.Run("Rows", func(t *testing.T) {
		metatest.RunTx(t, func(t *testing.T) meta.Tx {
			st, err := prepare(context.Background(), e.writer)
			if err != nil {
				t.Fatal(err)
			}
			conn, err := e.writer.Begin()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := errors.Join(conn.Rollback(), st.close()); err != nil {
					t.Error(err)
				}
			})
			tx := &Tx{ctx: context.Background(), st: st, tx: conn, over: newWrites(), cache: newCache()}
			return &flushing{Tx: tx, conn: conn, e: e}
		}, metatest.Far)
	})
	t.Run("Commands", func(t *testing.T) { commandsOn(t, e) })
}

// commands runs the suite through leaders on a database.
func commands(t *testing.T, url string) { commandsOn(t, open(t, url)) }

func commandsOn(t *testing.T, e *Engine) {
	epoch := uint64(0)
	metatest.Run(t, func(t *testing.T) meta.Client {
		for _, table := range []string{"inodes", "entries", "chunks", "xattrs", "counters", "results"} {
			if _, err := e.db.Exec("DELETE FROM " + table); err != nil {
				t.Fatal(err)
			}
		}
		epoch++
		l := lead(t, e, epoch)
		t.Cleanup(func() { checkCache(t, l) })
		return &client{e, l}
	}, metatest.Far)
}

func TestMariaDB(t *testing.T) {
	t.Parallel()
	cert, key := enginetest.Certificate(t, "127.0.0.1")
	s := mysqltest.Start(t, "--ssl-cert="+cert, "--ssl-key="+key, "--log-bin", "--server-id=1")
	s.Durable(t, false) // which no suite asks for
	suites(t, s)
	s.Durable(t, true)
	t.Run("Fence", func(t *testing.T) { testFence(t, s) })
	t.Run("Once", func(t *testing.T) { testOnce(t, s) })
	t.Run("Known", func(t *testing.T) { testKnown(t, s) })
	t.Run("Queries", func(t *testing.T) { testQueries(t, s) })
	t.Run("Restart", func(t *testing.T) { testRestart(t, s) })
	t.Run("Files", func(t *testing.T) { testFiles(t, s) })
	t.Run("Times", func(t *testing.T) { testTimes(t, s) })
	t.Run("Refused", func(t *testing.T) { testRefused(t, s) })
	t.Run("TLS", func(t *testing.T) { testTLS(t, s, cert) })
	t.Run("Connections", func(t *testing.T) { testConnections(t, s) })
	t.Run("ReadOnly", func(t *testing.T) { testReadOnly(t, s) })
	t.Run("Packet", func(t *testing.T) {
		refusedFor(t, mysqltest.Start(t, "--max-allowed-packet=8M").Create(t, "small"), "max_allowed_packet = 16M")
	})
}

func mknod(name string) *metapb.Command {
	return &metapb.Command{Op: &metapb.Command_Mknod{Mknod: &metapb.Mknod{
		Parent: uint64(sys.RootIno), Name: []byte(name), Type: uint32(sys.TypeRegular), Mode: 0o644,
	}}}
}

func format() *metapb.Command {
	return &metapb.Command{Op: &metapb.Command_Format{Format: &metapb.Format{}}}
}

func names(t *testing.T, e *Engine) []string {
	t.Helper()
	var all []string
	for cookie := uint64(0); ; {
		a, err := e.Query(context.Background(), &metapb.Query{Op: &metapb.Query_ReadDir{
			ReadDir: &metapb.ReadDir{Ino: uint64(sys.RootIno), After: cookie, Limit: 1000},
		}})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range a.Entries {
			all, cookie = append(all, string(e.Name)), e.Cookie
		}
		if len(a.Entries) == 0 {
			return all
		}
	}
}

// Whoever led before commits nothing any more, even in a transaction that was
// open when the next one took office.
func testFence(t *testing.T, s *mysqltest.Server) {
	url := s.Create(t, "fence")
	old, ctx := lead(t, open(t, url), 5), context.Background()
	e := open(t, url)
	if _, err := old.Do(ctx, &meta.Request{Body: body(format())}); err != nil {
		t.Fatal(err)
	}
	// A transaction that stands still with the fence's row in its hand, as
	// that of a process that is stopped.
	conn, err := old.e.writer.Conn(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.ExecContext(ctx, "START TRANSACTION; UPDATE fence SET seq=seq+1, time_ns=1 WHERE id=1 AND epoch=5"); err != nil {
		t.Fatal(err)
	}
	var next *Leader
	for next == nil { // until the server gives up the old connection
		l, err := e.Lead(ctx, 6, nil)
		if err == nil {
			next = l
			t.Cleanup(l.Close)
		} else if n := number(err); n != errLockTimeout {
			t.Fatalf("expected to wait for the lock, found %v", err)
		}
	}
	if _, err := conn.ExecContext(ctx, "COMMIT"); err == nil {
		t.Fatal("expected the old transaction to be gone, found that it commits")
	}
	if err := conn.Close(); err != nil {
		t.Log(err)
	}
	if _, err := next.Do(ctx, &meta.Request{Body: body(mknod("new"))}); err != nil {
		t.Fatal(err)
	}
	if _, err := old.Do(ctx, &meta.Request{Body: body(mknod("old"))}); sys.KindOf(err) != sys.NotLeader {
		t.Fatalf("expected the old leader to be refused, found %v", err)
	}
	if _, err := old.e.Lead(ctx, 5, nil); sys.KindOf(err) != sys.NotLeader {
		t.Fatalf("expected the old epoch to be refused, found %v", err)
	}
	if got := names(t, e); len(got) != 1 || got[0] != "new" {
		t.Fatalf("expected only the new leader's file, found %q", got)
	}
}

// A command that comes again has the result it had, at the next leader too,
// and a transaction whose reply was lost is not run again.
func testOnce(t *testing.T, s *mysqltest.Server) {
	e, ctx := open(t, s.Create(t, "once")), context.Background()
	l := lead(t, e, 1)
	if _, err := l.Do(ctx, &meta.Request{Body: body(format())}); err != nil {
		t.Fatal(err)
	}
	req := &meta.Request{Session: 7, Seq: 1, Body: body(mknod("f"))}
	first, err := l.Do(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	for epoch := uint64(1); epoch < 3; epoch++ {
		again, err := l.Do(ctx, req)
		if err != nil || again.Outcome != nil || result(again).Attr.GetIno() != result(first).Attr.Ino {
			t.Fatalf("expected inode %d again, found %v, %v", result(first).Attr.Ino, result(again), err)
		}
		l = lead(t, e, epoch+1)
	}
	// The reply to COMMIT is lost: the text goes there twice.
	b := &carried{l: l, rows: newWrites(), nowNs: l.lastNs + 1}
	b.rows.counters[meta.CounterFreed] = 42
	text, err := b.script(l.Seq())
	if err != nil {
		t.Fatal(err)
	}
	if err := l.send(ctx, text); err != nil {
		t.Fatal(err)
	}
	if err := l.commit(ctx, b); err != nil {
		t.Fatalf("expected a transaction that was committed to be known as such, found %v", err)
	}
	// What is acknowledged is forgotten, much at once.
	for seq := uint64(2); seq <= acksMin+1; seq++ {
		if _, err := l.Do(ctx, &meta.Request{Session: 7, Seq: seq, Ack: seq - 1, Body: body(mknod(fmt.Sprint("g", seq)))}); err != nil {
			t.Fatal(err)
		}
	}
	var n int
	if err := e.db.QueryRow("SELECT COUNT(*) FROM results").Scan(&n); err != nil || n != 1 {
		t.Fatalf("expected 1 result, found %d, %v", n, err)
	}
}

// A query reads one point also while the leader commits: a name leads to an
// inode that has it.
func testQueries(t *testing.T, s *mysqltest.Server) {
	e, ctx := open(t, s.Create(t, "queries")), context.Background()
	c := &client{e, lead(t, e, 1)}
	if _, err := c.Do(ctx, format()); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		unlink := &metapb.Command{Op: &metapb.Command_Unlink{Unlink: &metapb.Unlink{Parent: uint64(sys.RootIno), Name: []byte("f")}}}
		for range 300 {
			for _, cmd := range []*metapb.Command{mknod("f"), unlink} {
				if _, err := c.Do(ctx, cmd); err != nil {
					done <- err
					return
				}
			}
		}
		done <- nil
	}()
	found := 0
	for {
		select {
		case err := <-done:
			if err != nil || found == 0 {
				t.Fatalf("found the file %d times, %v", found, err)
			}
			return
		default:
		}
		a, err := c.Query(ctx, &metapb.Query{Op: &metapb.Query_Lookup{Lookup: &metapb.Lookup{Parent: uint64(sys.RootIno), Name: []byte("f")}}})
		switch {
		case err == nil && a.Attr.Nlink != 1:
			t.Fatalf("expected an inode with one name, found one with %d", a.Attr.Nlink)
		case err == nil:
			found++
		case !sys.Is(err, sys.NotExist):
			t.Fatal(err)
		}
	}
}

// A leader goes on after the server was killed, and nothing it answered for is
// lost.
func testRestart(t *testing.T, s *mysqltest.Server) {
	e := patient(t, s.Create(t, "restart"))
	l := lead(t, e, 1)
	sound(t, e, l, makeFiles(t, l, 0, 50, func() {
		s.Kill()
		s.Restart()
	}))
}

// patient is an engine that waits a minute for its server.
func patient(t *testing.T, url string) *Engine { return waitingFor(t, url, time.Minute) }

func waitingFor(t *testing.T, url string, wait time.Duration) *Engine {
	t.Helper()
	e, err := Open(context.Background(), Config{URL: url, Cluster: testCluster, Wait: wait})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

// sound fails the test unless there are so many files in a sound tree.
func sound(t *testing.T, e *Engine, l *Leader, files int) {
	t.Helper()
	if got := names(t, e); len(got) != files {
		t.Errorf("expected %d files, found %d", files, len(got))
	}
	report, err := meta.Check(context.Background(), &client{e, l}, meta.CheckOptions{Thorough: true})
	if err != nil || len(report.Problems) > 0 {
		t.Errorf("expected a sound tree, found %v, %v", report, err)
	}
}

// workers is how many sessions make files at once.
const workers = 4

// makeFiles makes each files by each of the workers, with trouble halfway, on a
// tree that is new at turn 0, and fails the test unless each is answered. It
// returns how many were.
func makeFiles(t *testing.T, l *Leader, turn, each int, trouble func()) int {
	t.Helper()
	ctx := context.Background()
	if turn == 0 {
		if _, err := l.Do(ctx, &meta.Request{Body: body(format())}); err != nil {
			t.Fatal(err)
		}
	}
	done, halfway := make(chan error, workers), make(chan struct{}, workers)
	for w := range workers {
		go func() {
			session := sys.SessionID(turn*workers + w + 1)
			for i := range each {
				if i == each/2 {
					halfway <- struct{}{}
				}
				r, err := l.Do(ctx, &meta.Request{Session: session, Seq: uint64(i + 1), Ack: uint64(i), Body: body(mknod(fmt.Sprintf("f%d-%d", session, i)))})
				if err == nil && result(r).Failure != nil {
					err = result(r).Failure.Err()
				}
				if err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	<-halfway
	if trouble != nil {
		trouble()
	}
	for range workers {
		if err := <-done; err != nil {
			t.Error(err)
			each = 0
		}
	}
	return workers * each
}

// A person finds files in SQL, with every column of the view as the tree has it.
func testFiles(t *testing.T, s *mysqltest.Server) {
	e, ctx := open(t, s.Create(t, "files")), context.Background()
	c := &client{e, lead(t, e, 1)}
	db := s.DB(t, "files")
	if _, err := db.Exec("INSERT INTO owners VALUES (1000, 'ana')"); err != nil {
		t.Fatal(err)
	}
	in := func(parent sys.Ino, cmd *metapb.Command, typ sys.FileType) *metapb.Command {
		cmd.GetMknod().Parent, cmd.GetMknod().Type = uint64(parent), uint32(typ)
		return cmd
	}
	file, link := in(sys.FirstIno, mknod("file.txt"), sys.TypeRegular), in(sys.RootIno, mknod("sym"), sys.TypeSymlink)
	file.GetMknod().Body = &metapb.Commit{Inline: []byte("hello")}
	file.Cred = &metapb.Cred{Uid: 1000, Gid: 77}
	link.GetMknod().Target = []byte("a dir/file.txt")
	for _, cmd := range []*metapb.Command{
		format(), in(sys.RootIno, mknod("a dir"), sys.TypeDir),
		{Op: &metapb.Command_SetAttr{SetAttr: &metapb.SetAttr{Ino: uint64(sys.FirstIno), Mode: proto.Uint32(0o1777)}}},
		file, link, in(sys.RootIno, mknod("pipe"), sys.TypeFIFO),
		{Op: &metapb.Command_Link{Link: &metapb.Link{Ino: uint64(sys.FirstIno) + 1, Parent: uint64(sys.RootIno), Name: []byte("other name")}}},
	} {
		if _, err := c.Do(ctx, cmd); err != nil {
			t.Fatal(err)
		}
	}
	got := map[string][]string{}
	err := each(ctx, db, "SELECT path, id, name, parent, size, owner, owner_id, group_id, mode, type, "+
		"ROUND(UNIX_TIMESTAMP(mtime)*10000), ROUND(UNIX_TIMESTAMP(ctime)*10000) FROM files", func(r *sql.Rows) error {
		row := make([]string, 12)
		fields := make([]any, len(row))
		for i := range row {
			fields[i] = &row[i]
		}
		err := r.Scan(fields...)
		got[row[0]] = row[1:]
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]string{}
	row := func(path string, ino, parent sys.Ino, size, owner, uid, gid, mode, typ string) {
		a, err := c.Query(ctx, &metapb.Query{Op: &metapb.Query_GetAttr{GetAttr: &metapb.GetAttr{Ino: uint64(ino)}}})
		if err != nil {
			t.Fatal(err)
		}
		tick := func(ns int64) string { return fmt.Sprint(ns / 1e5) } // the view has a tenth of a ms
		want[path] = []string{fmt.Sprint(uint64(ino)), path[strings.LastIndex(path, "/")+1:], fmt.Sprint(uint64(parent)), size, owner, uid, gid, mode, typ,
			tick(a.Attr.MtimeNs), tick(a.Attr.CtimeNs)}
	}
	row("/a dir", sys.FirstIno, sys.RootIno, "0", "0", "0", "0", "1777", "dir")
	row("/a dir/file.txt", sys.FirstIno+1, sys.FirstIno, "5", "ana", "1000", "77", "0644", "file")
	row("/other name", sys.FirstIno+1, sys.RootIno, "5", "ana", "1000", "77", "0644", "file")
	row("/sym", sys.FirstIno+2, sys.RootIno, "14", "0", "0", "0", "0644", "symlink")
	row("/pipe", sys.FirstIno+3, sys.RootIno, "0", "0", "0", "0", "0644", "fifo")
	if !maps.EqualFunc(got, want, slices.Equal) {
		t.Fatalf("expected\n%q, found\n%q", want, got)
	}
}

// The view has all times that a file can have, in the time zone of whoever asks.
func testTimes(t *testing.T, s *mysqltest.Server) {
	url, ctx := s.Create(t, "times"), context.Background()
	open(t, url)
	// As an older koinon left it.
	for _, statement := range []string{"DELETE FROM goose_db_version WHERE version_id > 1", "CREATE OR REPLACE VIEW files AS SELECT 1 AS old"} {
		if _, err := s.DB(t, "times").Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
	e := open(t, url)
	c := &client{e, lead(t, e, 1)}
	for _, cmd := range []*metapb.Command{format(), mknod("f")} {
		if _, err := c.Do(ctx, cmd); err != nil {
			t.Fatal(err)
		}
	}
	conn, err := s.DB(t, "times").Conn(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }() // its database is closed anyway
	if _, err := conn.ExecContext(ctx, "SET time_zone = '+02:00'"); err != nil {
		t.Fatal(err)
	}
	for _, ns := range []int64{
		0, 1, -1, 1e9, -1e9, 1_753_000_000_123_456_789, -315_619_200e9, 2_208_988_800e9, // of 1960 and 2040
		2_147_483_646e9, 2_147_483_647e9, 2_147_483_647_999_999_999, 2_147_483_648e9, 2_147_483_650e9,
		-883_612_800e9, -883_612_800e9 - 1, 4_294_967_296e9, 951_782_400e9, 4_107_456_000e9, math.MinInt64, math.MaxInt64,
	} {
		set := &metapb.SetAttr{Ino: uint64(sys.FirstIno), MtimeNs: &ns, CtimeNs: &ns}
		if _, err := c.Do(ctx, &metapb.Command{Op: &metapb.Command_SetAttr{SetAttr: set}}); err != nil {
			t.Fatal(err)
		}
		var mtime, ctime string
		var simple sql.Null[string]
		err := conn.QueryRowContext(ctx, "SELECT CAST(mtime AS CHAR), CAST(f.ctime AS CHAR), CAST(FROM_UNIXTIME(mtime_ns / 1000000000) AS CHAR) FROM files f JOIN inodes i ON f.id = i.id").
			Scan(&mtime, &ctime, &simple)
		if err != nil {
			t.Errorf("%d: %v", ns, err)
			continue
		}
		const layout = "2006-01-02 15:04:05.0000"
		want := time.Unix(0, ns).Truncate(100 * time.Microsecond).In(time.FixedZone("", 2*3600)).Format(layout)
		if mtime != want || ctime != want || ns >= 0 && ns < 2_147_483_647e9 && simple.V != mtime {
			t.Errorf("%d: expected %s, found %s and %s, with FROM_UNIXTIME alone %s", ns, want, mtime, ctime, simple.V)
		}
	}
}

// What is wrong is named, and the password never is.
func testRefused(t *testing.T, s *mysqltest.Server) {
	good := s.Create(t, "refused")
	open(t, good)
	newer := s.Create(t, "newer")
	open(t, newer)
	if _, err := s.DB(t, "newer").Exec("INSERT INTO goose_db_version (version_id, is_applied) VALUES (9999, 1)"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ url, cluster, want string }{
		{"http://koinon:geheim@h/db", "test", "scheme"},
		{"mysql://:geheim@h/db", "test", "user"},
		{"mysql://koinon:geheim@h/", "test", "database"},
		{"mysql://koinon:geheim@/db", "test", "host"},
		{"mysql://koinon:gehe%im@h:x/db", "test", "password"},
		{good + "?speed=9", "test", "parameter"},
		{strings.Replace(good, "se%3Acr%2Fet", "geheim", 1), "test", "password"},
		{strings.Replace(good, "/refused", "/nowhere", 1), "test", "database"},
		{good + "?tls=true", "test", "TLS"},
		{fmt.Sprintf("mysql://koinon:geheim@127.0.0.1:%d/db", mysqltest.FreePort(t)), "test", "does not answer"},
		{good, "another", "cluster"},
		{newer, "test", "newer"},
	} {
		e, err := Open(context.Background(), Config{URL: c.url, Cluster: c.cluster})
		if err == nil {
			t.Errorf("%s: expected to be refused", c.url)
			_ = e.Close() // the test has failed
			continue
		}
		if !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "geheim") || strings.Contains(err.Error(), mysqltest.Password) {
			t.Errorf("%s: expected %q and no password, found %v", c.url, c.want, err)
		}
	}
	testForeign(t, s)
	if told, want := open(t, good).String(), strings.Replace(good, mysqltest.Coded, "***", 1); told != want {
		t.Errorf("expected the engine to print as %s, found %s", want, told)
	}
	socket := fmt.Sprintf("mysql://koinon:se%%3Acr%%2Fet@/refused?socket=%s", s.Socket())
	if found := names(t, open(t, socket)); len(found) != 0 {
		t.Errorf("expected a new tree by the socket, found %q", found)
	}
	for url, want := range map[string]string{
		good: "holds the tree of cluster \"test\"",
		strings.Replace(good, "/refused", "/none", 1): "database: there is none",
		s.Create(t, "empty"):                          "",
	} {
		switch err := Probe(context.Background(), url); {
		case want == "" && err != nil:
			t.Errorf("%s: an empty database is refused: %v", url, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: expected %q, found %v", url, want, err)
		}
	}
}

// A database with somebody else's tables is refused at once and stays as it is;
// Koinon's own may have others beside.
func testForeign(t *testing.T, s *mysqltest.Server) {
	for i, c := range []struct {
		tables []string
		named  string
	}{
		{[]string{"inodes"}, "inodes"},
		{[]string{"mine"}, "mine"},
		{[]string{"fence"}, "fence"},
		{[]string{"goose_db_version", "mine"}, "mine"},
		{[]string{"d", "c", "b", "a"}, "a, b, c, ..."},
	} {
		name := fmt.Sprint("foreign", i)
		url, db := s.Create(t, name), s.DB(t, name)
		for _, table := range c.tables {
			if _, err := db.Exec("CREATE TABLE " + table + " (x INT)"); err != nil {
				t.Fatal(err)
			}
		}
		e, err := Open(context.Background(), Config{URL: url, Cluster: testCluster})
		if err == nil {
			err = e.Close()
		}
		for _, err := range []error{err, Probe(context.Background(), url)} {
			if sys.KindOf(err) != sys.Invalid || !strings.Contains(err.Error(), "not Koinon's ("+c.named+")") {
				t.Errorf("%v: %v", c.tables, err)
			}
		}
		var left int
		if err := db.QueryRow("SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = DATABASE()").Scan(&left); err != nil || left != len(c.tables) {
			t.Errorf("%v: %d tables are left, %v", c.tables, left, err)
		}
	}
	url := s.Create(t, "beside")
	open(t, url)
	if _, err := s.DB(t, "beside").Exec("CREATE TABLE mine (x INT)"); err != nil {
		t.Fatal(err)
	}
	open(t, url)
}
