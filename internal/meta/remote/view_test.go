package remote

import (
	"context"
	"errors"
	"net"
	"testing"

	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/mysql"
	"github.com/koinon/koinon/internal/meta/mysql/mysqltest"
)

// TestViewOfADatabaseThatWasAway: a view ends with the server that had it, so
// that who looks at it begins anew, in place of asking for it in vain.
func TestViewOfADatabaseThatWasAway(t *testing.T) {
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	t.Cleanup(func() { _ = l.Close() })
	group := oneVoter(t, l.Addr().String())
	srv := mysqltest.Start(t)
	db := must(mysql.Open(t.Context(), mysql.Config{URL: srv.Create(t, "koinon"), Cluster: "test"}))
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	view := func() *databaseView {
		return &databaseView{view: must(db.View(t.Context())), group: group, round: group.Leading()}
	}
	v := view()
	if _, err := v.Query(t.Context(), treeState); err != nil || !v.Good() {
		t.Fatalf("found %v", err)
	}
	srv.Kill()
	srv.Restart()
	for range 2 {
		if _, err := v.Query(t.Context(), treeState); !errors.Is(err, meta.ErrViewGone) || v.Good() {
			t.Errorf("expected a view that is gone, found %v", err)
		}
	}
	if err := v.Close(); err != nil {
		t.Error(err)
	}
	if v = view(); !v.Good() {
		t.Error("there is no new view")
	}
	if _, err := v.Query(context.Background(), treeState); err != nil {
		t.Error(err)
	}
	if err := v.Close(); err != nil {
		t.Error(err)
	}
}
