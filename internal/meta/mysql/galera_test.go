package mysql

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/mysql/mysqltest"
	"github.com/koinon/koinon/internal/sys"
)

func TestGalera(t *testing.T) {
	t.Parallel()
	g := mysqltest.StartGalera(t)
	for _, s := range g.Servers {
		s.Durable(t, false) // which no suite asks for
	}
	t.Run("Suite", func(t *testing.T) { commands(t, g.Create(t, "tree")) })
	t.Run("TwoLeaders", func(t *testing.T) { testTwoLeaders(t, g) })
	t.Run("Conflicts", func(t *testing.T) { testConflicts(t, g) })
	t.Run("ServerDies", func(t *testing.T) { testServerDies(t, g) })
}

// conflictsMin is how many of the leader's transactions are to meet others'.
const conflictsMin = 40

// A leader whose transactions meet those of another server, which win, stays in
// office, and what it has acknowledged is there.
func testConflicts(t *testing.T, g *mysqltest.Galera) {
	e := patient(t, g.Create(t, "conflicts"))
	l := lead(t, e, 1)
	status, other := g.Servers[0].DB(t, ""), g.Servers[1].DB(t, "conflicts")
	conflicts := func() (n int) {
		for _, name := range []string{"wsrep_local_bf_aborts", "wsrep_local_cert_failures"} {
			var met int
			if err := status.QueryRow("SHOW GLOBAL STATUS LIKE '"+name+"'").Scan(&name, &met); err != nil {
				t.Error(err)
			}
			n += met
		}
		return n
	}
	before, stop, done := conflicts(), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Duration(rand.IntN(6000)) * time.Microsecond):
			}
			// That it is refused in turn is fine.
			_, err := other.Exec("UPDATE fence SET time_ns = time_ns + 1")
			if err != nil && number(err) != errDeadlock {
				t.Error(err)
			}
		}
	}()
	made, turn := 0, 0
	for end := time.Now().Add(time.Minute); conflicts()-before < conflictsMin && time.Now().Before(end); turn++ {
		made += makeFiles(t, l, turn, 25, nil)
	}
	close(stop)
	<-done
	t.Logf("%d conflicts, %d files, %d transactions", conflicts()-before, made, l.Seq())
	if n := conflicts() - before; n < conflictsMin {
		t.Errorf("%d conflicts prove nothing", n)
	}
	sound(t, e, l, made)
}

// A leader goes on at another server when the one that it uses is killed.
func testServerDies(t *testing.T, g *mysqltest.Galera) {
	e := patient(t, g.Create(t, "dies"))
	l := lead(t, e, 1)
	made := makeFiles(t, l, 0, 10, nil)
	victim := g.Servers[e.hosts.now()%len(g.Servers)]
	began := time.Now()
	made += makeFiles(t, l, 1, 100, victim.Kill)
	took := time.Since(began)
	t.Logf("%d files with a server killed halfway took %v", workers*100, took)
	if took > 15*time.Second {
		t.Errorf("expected to go on within seconds, found that it took %v", took)
	}
	sound(t, e, l, made)
}

// Of two leaders that write at two servers only the later one commits.
func testTwoLeaders(t *testing.T, g *mysqltest.Galera) {
	ctx := context.Background()
	g.Create(t, "leaders")
	old, next := open(t, g.Servers[0].URL("leaders")), open(t, g.Servers[1].URL("leaders"))
	l := lead(t, old, 5)
	if _, err := l.Do(ctx, &meta.Request{Body: body(format())}); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Do(ctx, &meta.Request{Body: body(mknod("before"))}); err != nil {
		t.Fatal(err)
	}
	// The next one sees at its own server what was acknowledged at the other.
	n := lead(t, next, 6)
	if got := names(t, next); len(got) != 1 || got[0] != "before" {
		t.Fatalf("expected what was acknowledged, found %q", got)
	}
	if _, err := l.Do(ctx, &meta.Request{Body: body(mknod("late"))}); sys.KindOf(err) != sys.NotLeader {
		t.Fatalf("expected the old leader to be refused, found %v", err)
	}
	if _, err := n.Do(ctx, &meta.Request{Body: body(mknod("after"))}); err != nil {
		t.Fatal(err)
	}
	if got := names(t, old); len(got) != 2 {
		t.Fatalf("expected two files at the other server too, found %q", got)
	}
}
