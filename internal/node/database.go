package node

import (
	"context"
	"time"

	"github.com/koinon/koinon/internal/meta/mysql"
	"github.com/koinon/koinon/internal/sys"
)

// databaseWait is how long a node that starts waits for a database that does
// not answer, before it gives up.
const databaseWait = 20 * time.Second

// openDatabase connects to the database that holds the tree, if one does.
func (s *server) openDatabase(ctx context.Context) error {
	if s.cfg.Meta.URL == "" {
		return nil
	}
	url, err := s.cfg.Meta.URL.Text()
	if err != nil {
		return err
	}
	deadline := s.clock.Boot() + databaseWait
	for {
		s.database, err = mysql.Open(ctx, mysql.Config{URL: url, Cluster: s.cfg.Cluster, Clock: s.clock, Log: s.log})
		if sys.KindOf(err) != sys.Unavailable || s.clock.Boot() > deadline || ctx.Err() != nil {
			return err
		}
		s.log.Warn("the database is awaited", "err", err)
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
		}
	}
}
