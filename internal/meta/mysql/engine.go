// Package mysql keeps the tree in a MySQL or MariaDB database: typed rows in
// tables that docs/formats/mysql.md lists.
//
// An [Engine] is a connection to one database. A [Leader] runs commands in it,
// many in one transaction, behind a fence: a row that names the leader's epoch
// and counts its transactions, and that every transaction moves on. Whoever
// leads next raises the epoch, after which no transaction of an earlier leader
// can commit, however late it arrives.
package mysql

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"strings"
	"sync/atomic"
	"time"

	driver "github.com/go-sql-driver/mysql"
	"github.com/pressly/goose/v3"

	"github.com/koinon/koinon/internal/engine"
	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/sys"
)

//go:embed migrations/*.sql
var migrations embed.FS

// readersMax is how many connections queries use at once.
const readersMax = 16

// othersMax is how many tables of a database that is not empty are named.
const othersMax = 3

// Config says where the database is and whose tree it holds.
type Config struct {
	// URL is mysql://user:password@host:port/database, see ParseURL.
	URL string
	// Cluster is the cluster's name. A database that holds another's tree is
	// refused.
	Cluster string
	// Wait is how long a transaction is tried again while the server is away
	// or refuses it; 0 is 5 s.
	Wait  time.Duration
	Clock env.Clock    // nil is the machine's
	Log   *slog.Logger // nil logs nothing
}

// Engine is one database. Its methods may be called concurrently.
type Engine struct {
	cfg    Config
	dsn    *driver.Config
	hosts  *hosts
	db     *sql.DB // reads
	writer *sql.DB // one connection, for scripts of several statements
	st     *statements
	tails  tails
	galera bool          // the database is on a Galera cluster
	seen   atomic.Uint64 // the last transaction that a leader here knows to be committed
}

// String is the URL without its secrets.
func (e *Engine) String() string { return engine.Ref(e.cfg.URL).String() }

// lagging reports whether servers of the database may lack what another one has
// acknowledged, as a replica does.
func (e *Engine) lagging() bool { return len(e.hosts.addrs) > 1 && !e.galera }

// Open connects, brings the tables up to date and checks that the database is
// this cluster's. The caller closes the engine after all of its leaders.
func Open(ctx context.Context, cfg Config) (_ *Engine, err error) {
	const op = sys.Op("mysql.Open")
	e, err := connect(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.Close())
		}
	}()
	if e.db, err = connector(e.dsn, nil); err != nil {
		return nil, err
	}
	e.db.SetMaxOpenConns(readersMax)
	e.db.SetMaxIdleConns(readersMax)
	if e.writer, err = connector(e.dsn, e.forLeader()); err != nil {
		return nil, err
	}
	e.writer.SetMaxOpenConns(1)
	e.writer.SetConnMaxIdleTime(2 * time.Second) // before the server's wait_timeout
	if err := e.db.PingContext(ctx); err != nil {
		return nil, e.explain(op, err)
	}
	if err := e.migrate(ctx); err != nil {
		return nil, e.explain(op, err)
	}
	if err := e.claim(ctx); err != nil {
		return nil, e.explain(op, err)
	}
	if e.st, err = prepare(ctx, e.db); err != nil {
		return nil, e.explain(op, err)
	}
	return e, nil
}

// Probe tries a database in which a new cluster is to keep its tree: that it
// can be used and holds no tree. It changes nothing.
func Probe(ctx context.Context, url string) (err error) {
	const op = sys.Op("mysql.Probe")
	e, err := connect(ctx, Config{URL: url})
	if err != nil {
		return err
	}
	if e.db, err = connector(e.dsn, nil); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, e.Close()) }()
	if err := e.onlyOurs(ctx); err != nil {
		return e.explain(op, err)
	}
	var whose string
	switch err := e.db.QueryRowContext(ctx, "SELECT cluster FROM fence WHERE id = 1").Scan(&whose); {
	case errors.Is(err, sql.ErrNoRows), number(err) == errNoTable:
		return nil
	case err != nil:
		return e.explain(op, err)
	}
	return e.taken(op, fmt.Sprintf("the tree of cluster %q", whose))
}

// taken is the error of a database that is another cluster's.
func (e *Engine) taken(op sys.Op, holds string) error {
	return sys.E(op, sys.Subject("database "+e.dsn.DBName), "it belongs to another cluster: it holds "+holds+
		"; give this cluster a database of its own: CREATE DATABASE, and name that one in the URL")
}

// connect finds the server that answers, of those that the URL names.
func connect(ctx context.Context, cfg Config) (*Engine, error) {
	const op = sys.Op("mysql.Open")
	if cfg.Wait == 0 {
		cfg.Wait = 5 * time.Second
	}
	if cfg.Clock == nil {
		cfg.Clock = env.System{}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	dsn, addrs, err := ParseURL(cfg.URL)
	if err != nil {
		return nil, err
	}
	e := &Engine{cfg: cfg, dsn: dsn, hosts: &hosts{addrs: addrs, conns: map[*hostConn]struct{}{}}, tails: newTails()}
	if err := e.hosts.configure(dsn); err != nil {
		return nil, sys.E(op, sys.Invalid, err)
	}
	for range addrs {
		turn := e.hosts.now()
		if err = e.probe(ctx); err == nil {
			return e, nil
		}
		if !elsewhere(err) {
			break
		}
		e.moveOn(turn, err)
	}
	return nil, e.explain(op, err)
}

// forLeader are the variables of a leader's connection.
func (e *Engine) forLeader() map[string]string {
	p := map[string]string{
		// A leader that stands still in a transaction must not hold the fence for
		// long.
		"wait_timeout": "3", "innodb_lock_wait_timeout": "2",
		// Nothing that follows a transaction which the server has given up may
		// take effect by itself.
		"autocommit": "0",
	}
	if e.galera {
		// Else a COMMIT for which there is no transaction any more, because it met
		// another server's, is tried again by the server and then "succeeds".
		p["wsrep_retry_autocommit"] = "0"
	}
	return p
}

// connector makes a pool. With variables, which are those of its connections,
// it takes several statements at once.
func connector(dsn *driver.Config, variables map[string]string) (*sql.DB, error) {
	dsn = dsn.Clone()
	dsn.MultiStatements = variables != nil
	maps.Copy(dsn.Params, variables)
	c, err := driver.NewConnector(dsn)
	if err != nil {
		return nil, sys.E(sys.Op("mysql.Open"), sys.Invalid, err)
	}
	return sql.OpenDB(c), nil
}

// packetMin is the least max_allowed_packet of a server, in bytes: the default of MariaDB.
const packetMin = 16 << 20

// probe asks the server what it is. Reads on a Galera cluster are made to wait
// for what any of its servers has acknowledged before: else another server, or
// one that is being cut off, would show what was.
func (e *Engine) probe(ctx context.Context) (err error) {
	probe, err := connector(e.dsn, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, probe.Close()) }()
	var packet int64
	if err := probe.QueryRowContext(ctx, "SELECT @@max_allowed_packet").Scan(&packet); err != nil {
		return err
	}
	if packet < packetMin {
		return sys.E(sys.Op("mysql.Open"), sys.Invalid, fmt.Sprintf("the server takes statements of up to %d KiB, and needs to take %d MiB: "+
			"set max_allowed_packet = %dM in its file (SET GLOBAL max_allowed_packet = %d until it is restarted)", packet>>10, packetMin>>20, packetMin>>20, int64(packetMin)))
	}
	var name, on string
	switch err := probe.QueryRowContext(ctx, "SHOW GLOBAL VARIABLES LIKE 'wsrep_on'").Scan(&name, &on); {
	case errors.Is(err, sql.ErrNoRows):
	case err != nil:
		return err
	case on == "ON":
		e.galera = true
		e.dsn.Params["wsrep_sync_wait"] = "1"
	}
	return nil
}

// Close lets go of the database.
func (e *Engine) Close() error {
	var all error
	if e.st != nil {
		all = e.st.close()
	}
	for _, db := range []*sql.DB{e.db, e.writer} {
		if db != nil {
			all = errors.Join(all, db.Close())
		}
	}
	return all
}

// migrate brings the tables up to date while nobody else does.
func (e *Engine) migrate(ctx context.Context) (err error) {
	lock, err := e.db.Conn(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	var got sql.Null[int64]
	const name = "CONCAT('koinon migrate ', LEFT(MD5(DATABASE()), 16))"
	if err := lock.QueryRowContext(ctx, "SELECT GET_LOCK("+name+", 30)").Scan(&got); err != nil {
		return err
	}
	if got.V != 1 {
		return sys.E(sys.Op("mysql.Open"), sys.Busy, "another node has been changing the tables for 30 s: try again")
	}
	defer func() {
		_, uerr := lock.ExecContext(context.WithoutCancel(ctx), "DO RELEASE_LOCK("+name+")")
		err = errors.Join(err, uerr)
	}()
	if err := e.onlyOurs(ctx); err != nil {
		return err
	}
	dir, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(goose.DialectMySQL, e.db, dir, goose.WithDisableGlobalRegistry(true))
	if err != nil {
		return err
	}
	have, err := p.GetDBVersion(ctx)
	if err != nil {
		return err
	}
	known := p.ListSources()
	if last := known[len(known)-1].Version; have > last {
		return sys.E(sys.Op("mysql.Open"), sys.NotSupported,
			fmt.Sprintf("the tables are of version %d, this koinon knows up to %d: install a newer one", have, last))
	}
	_, err = p.Up(ctx)
	return err
}

// onlyOurs is Invalid when Koinon's tables are to be made in a database that has
// others. What a user adds to Koinon's later is the user's own business.
func (e *Engine) onlyOurs(ctx context.Context) error {
	var others []string
	var ours int // the first two that are made: an attempt may have been cut short after each
	err := each(ctx, e.db, "SELECT table_name FROM information_schema.tables WHERE table_schema = DATABASE() ORDER BY table_name", func(r *sql.Rows) error {
		var name string
		err := r.Scan(&name)
		if name == "goose_db_version" || name == "fence" {
			ours++
		}
		if name != "goose_db_version" {
			others = append(others, name)
		}
		return err
	})
	if err != nil || ours == 2 || len(others) == 0 {
		return err
	}
	if len(others) > othersMax {
		others = append(others[:othersMax], "...")
	}
	return sys.E(sys.Op("mysql.Open"), sys.Invalid, sys.Subject("database "+e.dsn.DBName), fmt.Sprintf(
		"the database is not empty: it has tables that are not Koinon's (%s): give it a database of its own", strings.Join(others, ", ")))
}

// claim makes an empty database this cluster's.
func (e *Engine) claim(ctx context.Context) error {
	_, err := e.db.ExecContext(ctx, "INSERT IGNORE INTO fence (id, cluster, epoch, seq, time_ns) VALUES (1, ?, 0, 0, 0)", e.cfg.Cluster)
	if err != nil {
		return err
	}
	var whose string
	if err := e.db.QueryRowContext(ctx, "SELECT cluster FROM fence WHERE id = 1").Scan(&whose); err != nil {
		return err
	}
	if whose != e.cfg.Cluster {
		return e.taken("mysql.Open", fmt.Sprintf("the tree of cluster %q, not of %q", whose, e.cfg.Cluster))
	}
	return nil
}
