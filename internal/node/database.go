package node

import (
	"context"
	"time"

	"github.com/koinon/koinon/internal/client"
	"github.com/koinon/koinon/internal/engine"
	"github.com/koinon/koinon/internal/meta/mysql"
)

// databaseWait is how long a node that starts waits for an engine from outside
// that does not answer, before it gives up.
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
	told := func(err error) { s.log.Warn("the database is awaited", "err", err) }
	return client.AwaitEngine(ctx, databaseWait, told, func() (err error) {
		s.database, err = mysql.Open(ctx, mysql.Config{URL: url, Cluster: s.cfg.Cluster, Clock: s.clock, Log: s.log})
		return err
	})
}

// ProbeMeta tries a database in which a cluster that is to be made keeps its
// tree. It changes nothing.
func ProbeMeta(ctx context.Context, ref engine.Ref) error {
	if ref == "" {
		return nil
	}
	url, err := ref.Text()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, watchMax)
	defer cancel()
	return mysql.Probe(ctx, url)
}
