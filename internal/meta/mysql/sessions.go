package mysql

import (
	"context"
	"database/sql"
	"slices"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// Sessions lists, in order, the sessions of which the database holds results
// or slices that they have reserved.
func (e *Engine) Sessions(ctx context.Context) ([]sys.SessionID, error) {
	var all []sys.SessionID
	err := each(ctx, e.db, "SELECT DISTINCT session FROM results", func(r *sql.Rows) error {
		var id uint64
		err := r.Scan(&id)
		all = append(all, sys.SessionID(id))
		return err
	})
	if err == nil {
		t := &Tx{ctx: ctx, st: e.st}
		err = t.ScanChunks(sys.PendingIno, 0, func(_ uint32, c *metapb.Chunk) bool {
			for _, reserved := range c.Ranges {
				all = append(all, sys.SessionID(reserved.Session))
			}
			return true
		})
	}
	if err != nil {
		return nil, e.explain("mysql.Sessions", err)
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}
