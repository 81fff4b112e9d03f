// Package mysqltest runs MariaDB servers for tests: processes of the test's
// own, on temporary directories and free ports.
package mysqltest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	driver "github.com/go-sql-driver/mysql"
	"github.com/koinon/koinon/internal/ports"
)

// startWait is how long a server may take to start.
const startWait = 60 * time.Second

// Server is one mariadbd with a user "koinon" who may do anything from this
// machine, and whose password is Password. It is used by one goroutine.
type Server struct {
	Port  int
	tb    testing.TB
	dir   string
	flags []string
	user  string // whom it runs as
	cmd   *exec.Cmd
	ended chan struct{}
}

// Password is the user's, and Coded how it stands in a URL.
const (
	Password = "se:cr/et"
	Coded    = "se%3Acr%2Fet"
)

// grant makes the user.
const grant = "GRANT ALL ON *.* TO koinon@'%' IDENTIFIED BY '" + Password + "'"

// Start runs a server until the test ends. It acknowledges a COMMIT when it is
// on disk; flags, which come last, may say otherwise.
func Start(tb testing.TB, flags ...string) *Server {
	tb.Helper()
	dir, err := os.MkdirTemp("", "mysqltest")
	if err != nil {
		tb.Fatal(err)
	}
	return StartIn(tb, dir, flags...)
}

// StartIn is Start in a directory of the caller's choice, which goes when the
// test ends.
func StartIn(tb testing.TB, dir string, flags ...string) *Server {
	tb.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		tb.Fatal(err)
	}
	s := newServer(tb, dir, flags)
	s.install()
	s.Restart()
	s.root(grant)
	return s
}

func newServer(tb testing.TB, dir string, flags []string) *Server {
	s := &Server{Port: FreePort(tb), tb: tb, dir: dir, flags: flags, user: user()}
	tb.Cleanup(func() {
		s.Kill()
		if err := os.RemoveAll(dir); err != nil {
			tb.Error(err)
		}
	})
	return s
}

// install makes the server's data. Like the server it keeps its temporary tables
// to itself: one that starts removes all that it finds, another one's too.
func (s *Server) install() {
	s.tb.Helper()
	install := exec.Command("mariadb-install-db", "--no-defaults", "--datadir="+s.data(), "--skip-test-db",
		"--auth-root-authentication-method=normal", "--innodb-log-file-size=16M", "--user="+user(),
		"--tmpdir="+s.dir)
	if out, err := install.CombinedOutput(); err != nil {
		s.tb.Fatalf("mariadb-install-db: %v\n%s", err, out)
	}
}

// root runs a statement as the server's administrator.
func (s *Server) root(statement string) {
	s.tb.Helper()
	db := s.open("root", "", "")
	_, err := db.Exec(statement)
	if err := errors.Join(err, db.Close()); err != nil {
		s.tb.Fatal(err)
	}
}

// user is whom the server runs as: it does not run as root unless told to.
func user() string {
	if os.Getuid() == 0 {
		return "root"
	}
	return os.Getenv("USER")
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }

// Socket is the server's unix socket.
func (s *Server) Socket() string { return filepath.Join(s.dir, "sock") }

// Restart starts the server, which must not be running, on the same data and
// waits until it answers.
func (s *Server) Restart() {
	s.tb.Helper()
	args := []string{
		"--no-defaults", "--datadir=" + s.data(), "--socket=" + s.Socket(), fmt.Sprintf("--port=%d", s.Port),
		"--bind-address=127.0.0.1", "--user=" + s.user, "--pid-file=" + filepath.Join(s.dir, "pid"),
		"--log-error=" + s.logFile(), "--innodb-buffer-pool-size=64M", "--innodb-log-file-size=16M",
		"--innodb-flush-log-at-trx-commit=1", "--skip-name-resolve", "--max-connections=200", "--tmpdir=" + s.dir,
	}
	s.cmd = exec.Command("mariadbd", append(args, s.flags...)...)
	if err := s.cmd.Start(); err != nil {
		s.tb.Fatalf("mariadbd: %v", err)
	}
	cmd, ended := s.cmd, make(chan struct{})
	s.ended = ended
	go func() {
		_ = cmd.Wait() // how a killed server ends is no news
		close(ended)
	}()
	s.await()
}

// await polls: the server has no other way to tell that it is there.
func (s *Server) await() {
	s.tb.Helper()
	db := s.open("root", "", "")
	defer func() {
		if err := db.Close(); err != nil {
			s.tb.Error(err)
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), startWait)
	defer cancel()
	poll := time.NewTicker(50 * time.Millisecond)
	defer poll.Stop()
	for {
		var n int // a Galera server lets in before it reads tables
		err := db.QueryRowContext(ctx, "SELECT COUNT(*) FROM mysql.db").Scan(&n)
		if err == nil {
			return
		}
		select {
		case <-poll.C:
		case <-s.ended:
			s.tb.Fatalf("mariadbd ended: %s", s.Log())
		case <-ctx.Done():
			s.tb.Fatalf("mariadbd does not answer: %v\n%s", err, s.Log())
		}
	}
}

// logFile has the ending that the server would add.
func (s *Server) logFile() string { return filepath.Join(s.dir, "log.err") }

// Log returns what the server has logged.
func (s *Server) Log() string {
	b, err := os.ReadFile(s.logFile())
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// Kill ends the server by SIGKILL, if it runs.
func (s *Server) Kill() {
	if s.cmd != nil {
		s.Signal(syscall.SIGKILL)
		<-s.ended
		s.cmd = nil
	}
}

// AwaitEnd waits until the server has ended by itself.
func (s *Server) AwaitEnd() {
	s.tb.Helper()
	select {
	case <-s.ended:
		s.cmd = nil
	case <-time.After(startWait):
		s.tb.Fatalf("mariadbd does not end\n%s", s.Log())
	}
}

// Signal sends the server a signal. That it has ended is fine.
func (s *Server) Signal(sig os.Signal) {
	if err := s.cmd.Process.Signal(sig); err != nil && err != os.ErrProcessDone {
		s.tb.Errorf("mariadbd: %v", err)
	}
}

func (s *Server) open(user, password, database string) *sql.DB {
	c := driver.NewConfig()
	c.User, c.Passwd, c.DBName = user, password, database
	c.Net, c.Addr = "unix", s.Socket()
	c.Logger = &driver.NopLogger{}
	connector, err := driver.NewConnector(c)
	if err != nil {
		s.tb.Fatal(err)
	}
	return sql.OpenDB(connector)
}

// DB opens a database for the test to look into and change as it likes, until
// the test ends.
func (s *Server) DB(tb testing.TB, database string) *sql.DB {
	db := s.open("koinon", Password, database)
	tb.Cleanup(func() { _ = db.Close() }) // the server may have been killed meanwhile
	return db
}

// Create makes an empty database and returns its URL.
func (s *Server) Create(tb testing.TB, database string) string {
	tb.Helper()
	if _, err := s.DB(tb, "").Exec("CREATE DATABASE " + database); err != nil {
		tb.Fatal(err)
	}
	return s.URL(database)
}

// CreateFor makes an empty database and a user with all rights on it, and none
// beyond, and returns its URL. The user may be one that there is.
func (s *Server) CreateFor(tb testing.TB, user, database string) string {
	tb.Helper()
	s.Create(tb, database)
	s.root(fmt.Sprintf("GRANT ALL ON %s.* TO %s@'%%' IDENTIFIED BY '%s'", database, user, Password))
	return strings.Replace(s.URL(database), "koinon:", user+":", 1)
}

// Durable says whether the server syncs before it acknowledges a COMMIT, as it
// does until told otherwise.
func (s *Server) Durable(tb testing.TB, durable bool) {
	tb.Helper()
	n := 0
	if durable {
		n = 1
	}
	if _, err := s.DB(tb, "").Exec(fmt.Sprintf("SET GLOBAL innodb_flush_log_at_trx_commit = %d", n)); err != nil {
		tb.Fatal(err)
	}
}

// URL names a database of the server.
func (s *Server) URL(database string) string {
	return fmt.Sprintf("mysql://koinon:%s@127.0.0.1:%d/%s", Coded, s.Port, database)
}

// FreePort returns a port of this machine that is free.
func FreePort(tb testing.TB) int {
	tb.Helper()
	free, err := ports.Free(1)
	if err != nil {
		tb.Fatal(err)
	}
	return free[0]
}
