package mysql

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/mysql/mysqltest"
	"github.com/koinon/koinon/internal/sys"
)

func TestGalera(t *testing.T) {
	g := mysqltest.StartGalera(t)
	for _, s := range g.Servers {
		s.Durable(t, false) // which no suite asks for
	}
	t.Run("Suite", func(t *testing.T) { commands(t, g.Create(t, "tree")) })
	t.Run("Certification", func(t *testing.T) { testCertification(t, g) })
	t.Run("TwoLeaders", func(t *testing.T) { testTwoLeaders(t, g) })
	for _, s := range g.Servers {
		s.Durable(t, true)
	}
	t.Run("Killed", func(t *testing.T) { testKilled(t, g) })
}

// A write at another server is a conflict at COMMIT, after which the same
// transaction is sent again.
func testCertification(t *testing.T, g *mysqltest.Galera) {
	e, ctx := open(t, g.Create(t, "certification")), context.Background()
	l := lead(t, e, 1)
	if _, err := l.Do(ctx, &Request{Body: body(format())}); err != nil {
		t.Fatal(err)
	}
	// What another server does to the fence's row without changing it still
	// takes the place of the leader's transaction.
	other := g.Servers[1].DB(t, "certification")
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			if _, err := other.Exec("UPDATE fence SET time_ns = time_ns + 1 WHERE id = 1"); err != nil && number(err) != errDeadlock {
				done <- err
				return
			}
		}
	}()
	conflicts := func() (n int) {
		for _, s := range g.Servers {
			for _, what := range []string{"wsrep_local_cert_failures", "wsrep_local_bf_aborts"} {
				var name string
				var count int
				if err := s.DB(t, "").QueryRow("SHOW STATUS LIKE '"+what+"'").Scan(&name, &count); err != nil {
					t.Fatal(err)
				}
				n += count
			}
		}
		return n
	}
	files, before := 0, conflicts()
	for end := time.Now().Add(30 * time.Second); files < 100 || conflicts() == before; files++ {
		if _, err := l.Do(ctx, &Request{Session: 1, Seq: uint64(files + 1), Ack: uint64(files), Body: body(mknod(fmt.Sprintf("f%d", files)))}); err != nil {
			t.Fatal(err)
		}
		if time.Now().After(end) {
			t.Fatal("no conflict within 30 s")
		}
	}
	close(stop)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Logf("%d files, %d conflicts", files, conflicts()-before)
	if got := names(t, e); len(got) != min(files, 1000) {
		t.Fatalf("expected %d files, found %d", files, len(got))
	}
}

// Of two leaders that write at two servers only the later one commits.
func testTwoLeaders(t *testing.T, g *mysqltest.Galera) {
	ctx := context.Background()
	g.Create(t, "leaders")
	old, next := open(t, g.Servers[0].URL("leaders")), open(t, g.Servers[1].URL("leaders"))
	l := lead(t, old, 5)
	if _, err := l.Do(ctx, &Request{Body: body(format())}); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Do(ctx, &Request{Body: body(mknod("before"))}); err != nil {
		t.Fatal(err)
	}
	// The next one sees at its own server what was acknowledged at the other.
	n := lead(t, next, 6)
	if got := names(t, next); len(got) != 1 || got[0] != "before" {
		t.Fatalf("expected what was acknowledged, found %q", got)
	}
	if _, err := l.Do(ctx, &Request{Body: body(mknod("late"))}); sys.KindOf(err) != sys.NotLeader {
		t.Fatalf("expected the old leader to be refused, found %v", err)
	}
	if _, err := n.Do(ctx, &Request{Body: body(mknod("after"))}); err != nil {
		t.Fatal(err)
	}
	if got := names(t, old); len(got) != 2 {
		t.Fatalf("expected two files at the other server too, found %q", got)
	}
}

// The server in use is killed under load, and the leader goes on at another.
func testKilled(t *testing.T, g *mysqltest.Galera) {
	e, err := Open(context.Background(), Config{URL: g.Create(t, "killed"), Cluster: testCluster, Wait: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	}()
	l, err := e.Lead(context.Background(), 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	work(t, l, func() { g.Servers[0].Kill() })
	if got := names(t, e); len(got) != workers*filesEach {
		t.Errorf("expected %d files, found %d", workers*filesEach, len(got))
	}
	report, err := meta.Check(context.Background(), &client{e, l}, meta.CheckOptions{Thorough: true})
	if err != nil || len(report.Problems) > 0 {
		t.Errorf("expected a sound tree, found %v, %v", report, err)
	}
}
