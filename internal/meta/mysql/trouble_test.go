package mysql

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/koinon/koinon/internal/engine/enginetest"
	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/mysql/mysqltest"
	"github.com/koinon/koinon/internal/sys"
)

// What is sent to the server is encrypted when the URL asks for it, and nobody
// else's certificate will do.
func testTLS(t *testing.T, s *mysqltest.Server, ca string) {
	url := s.Create(t, "encrypted")
	encrypted := func(url string) {
		t.Helper()
		e := open(t, url)
		for _, db := range []*sql.DB{e.db, e.writer} {
			var name, version string
			if err := db.QueryRow("SHOW SESSION STATUS LIKE 'Ssl_version'").Scan(&name, &version); err != nil || !strings.HasPrefix(version, "TLSv1.") {
				t.Errorf("expected TLS, found %q, %v", version, err)
			}
		}
		if _, err := lead(t, e, 1).Do(context.Background(), &meta.Request{Body: body(format())}); err != nil {
			t.Error(err)
		}
	}
	encrypted(url + "?ca=" + ca)
	// Each of several servers is to have a certificate for its own name.
	dead := fmt.Sprintf("@localhost:%d,127.0.0.1", mysqltest.FreePort(t))
	encrypted(strings.Replace(url, "@127.0.0.1", dead, 1) + "?ca=" + ca)

	other, _ := enginetest.Certificate(t, "127.0.0.1")
	for _, c := range []struct{ url, want string }{
		{url + "?tls=true", "not from a known authority"},
		{url + "?ca=" + other, "not from a known authority"},
		{url + "?server-name=db.example&ca=" + ca, "not for this name"},
		{strings.Replace(url, "127.0.0.1", "localhost", 1) + "?ca=" + ca, "not for this name"},
		{url + "?ca=" + ca + ".none", "no such file"},
	} {
		refusedFor(t, c.url, c.want)
	}
}

// refusedFor fails the test unless a database is refused in words that say want
// and no password.
func refusedFor(t *testing.T, url, want string) {
	t.Helper()
	e, err := Open(context.Background(), Config{URL: url, Cluster: testCluster})
	if err == nil {
		t.Errorf("%s: expected to be refused", url)
		_ = e.Close() // the test has failed
		return
	}
	if sys.Is(err, sys.Unavailable) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), mysqltest.Password) {
		t.Errorf("%s: expected %q and no password, found %v", url, want, err)
	}
}

// awaits fails the test unless the leader waits for a while and then says what
// it waits for, and what to do.
func awaits(t *testing.T, l *Leader, wait time.Duration, want string) {
	t.Helper()
	began := time.Now()
	_, err := l.Do(context.Background(), &meta.Request{Body: body(mknod("refused"))})
	if !sys.Is(err, sys.Unavailable) || !strings.Contains(err.Error(), want) {
		t.Errorf("expected %q, found %v", want, err)
	}
	if took := time.Since(began); took < wait/2 {
		t.Errorf("expected to wait for %v, found %v", wait, took)
	}
}

// A server that has no connection to spare is waited for.
func testConnections(t *testing.T, s *mysqltest.Server) {
	const wait = time.Second
	url := s.CreateFor(t, "crowd", "connections")
	admin := s.DB(t, "")
	exec := func(statement string) {
		t.Helper()
		if _, err := admin.Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
	// The binary log is on. What was made until then is no obstacle.
	refusedFor(t, url, "SET GLOBAL log_bin_trust_function_creators = 1")
	exec("SET GLOBAL log_bin_trust_function_creators = 1")
	e := waitingFor(t, url, wait)
	l := lead(t, e, 1)
	made := makeFiles(t, l, 0, 5, nil)

	exec("SET GLOBAL max_connections = 10")
	exec("KILL USER crowd")
	crowd, err := connector(e.dsn, nil)
	if err != nil {
		t.Fatal(err)
	}
	for err == nil { // until there is none left
		_, err = crowd.Conn(context.Background())
	}
	if number(err) != errTooManyConnections {
		t.Fatal(err)
	}
	awaits(t, l, wait, "raise max_connections")
	if _, err := e.View(context.Background()); !sys.Is(err, sys.Unavailable) || !strings.Contains(err.Error(), "raise max_connections") {
		t.Errorf("expected to be told of max_connections, found %v", err)
	}
	exec("SET GLOBAL max_connections = 200")
	made += makeFiles(t, l, 1, 5, nil)
	sound(t, e, l, made)
	if err := crowd.Close(); err != nil {
		t.Error(err)
	}
}

// A server that has become read-only is waited for, and the replica that takes
// over is found. Nothing is lost.
func testReadOnly(t *testing.T, s *mysqltest.Server) {
	const wait = time.Second
	replica := mysqltest.Start(t, "--server-id=2", "--read-only")
	other := replica.DB(t, "")
	exec := func(db *sql.DB, statement string, args ...any) {
		t.Helper()
		if _, err := db.Exec(fmt.Sprintf(statement, args...)); err != nil {
			t.Fatal(err)
		}
	}
	admin := s.DB(t, "")
	position := func() (file string, at int) {
		t.Helper()
		var rest sql.RawBytes
		rows, err := admin.Query("SHOW MASTER STATUS")
		if err != nil || !rows.Next() {
			t.Fatal(err)
		}
		if err := errors.Join(rows.Scan(&file, &at, &rest, &rest), rows.Close()); err != nil {
			t.Fatal(err)
		}
		return file, at
	}
	file, at := position()
	exec(other, "CHANGE MASTER TO MASTER_HOST='127.0.0.1', MASTER_PORT=%d, MASTER_USER='koinon', MASTER_PASSWORD='%s', MASTER_LOG_FILE='%s', MASTER_LOG_POS=%d",
		s.Port, mysqltest.Password, file, at)
	exec(other, "START SLAVE")
	exec(admin, "SET GLOBAL log_bin_trust_function_creators = 1")
	url := s.CreateFor(t, "mover", "moves")
	primary := fmt.Sprintf("127.0.0.1:%d", s.Port)
	e := waitingFor(t, strings.Replace(url, primary, fmt.Sprintf("%s,127.0.0.1:%d", primary, replica.Port), 1), wait)
	l := lead(t, e, 1)
	made := makeFiles(t, l, 0, 5, nil)

	exec(admin, "SET GLOBAL read_only = 1")
	awaits(t, l, wait, "SET GLOBAL read_only = 0")
	exec(admin, "SET GLOBAL read_only = 0")
	made += makeFiles(t, l, 1, 5, nil) // wherever it was looking

	exec(admin, "SET GLOBAL read_only = 1")
	defer exec(admin, "SET GLOBAL read_only = 0")
	file, at = position()
	var caughtUp sql.Null[int]
	if err := other.QueryRow("SELECT MASTER_POS_WAIT(?, ?, 20)", file, at).Scan(&caughtUp); err != nil || caughtUp.V < 0 || !caughtUp.Valid {
		t.Fatalf("the replica does not catch up: %v, %v\n%s", caughtUp, err, replica.Log())
	}
	exec(other, "STOP SLAVE")
	exec(other, "SET GLOBAL read_only = 0")
	made += makeFiles(t, l, 2, 5, nil)
	sound(t, e, l, made)
	// The one that was left has what there was before, and no more.
	var n int
	if err := s.DB(t, "moves").QueryRow("SELECT COUNT(*) FROM files").Scan(&n); err != nil || n >= made {
		t.Errorf("expected fewer than %d files at the server that was left, found %d, %v", made, n, err)
	}
	refusedFor(t, replica.URL("moves")+"?tls=true", "TLS: the server does not speak it")
}
