package mysql

import (
	"context"
	"testing"

	"github.com/koinon/koinon/internal/meta/mysql/mysqltest"
	"github.com/koinon/koinon/internal/sys"
)

func TestGalera(t *testing.T) {
	g := mysqltest.StartGalera(t)
	for _, s := range g.Servers {
		s.Durable(t, false) // which no suite asks for
	}
	t.Run("Suite", func(t *testing.T) { commands(t, g.Create(t, "tree")) })
	t.Run("TwoLeaders", func(t *testing.T) { testTwoLeaders(t, g) })
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
