package mysql

import (
	"crypto/tls"
	sqldriver "database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	driver "github.com/go-sql-driver/mysql"

	"github.com/koinon/koinon/internal/engine"
	"github.com/koinon/koinon/internal/sys"
)

// ParseURL reads mysql://user:password@host:port/database. The port is 3306
// unless given. There may be several hosts with commas between them, which are
// servers of one database; they are returned in order, or the socket. Parameters after "?" are
// socket=PATH (instead of hosts), tls=true (the server's certificate is checked
// against the host's name) and those of package engine for TLS, which imply it:
// ca=FILE (PEM, instead of the system's authorities), cert=FILE and key=FILE
// (who we are), server-name (instead of the host's). Errors name the part that
// is wrong and never the password.
func ParseURL(raw string) (*driver.Config, []string, error) {
	bad := func(cause string) error { return sys.E(sys.Op("mysql.ParseURL"), sys.Invalid, cause) }
	u, err := engine.Parse(raw)
	if err != nil {
		return nil, nil, err
	}
	c := driver.NewConfig()
	if u.Scheme != "mysql" {
		return nil, nil, bad(fmt.Sprintf("scheme: expected mysql, found %q", u.Scheme))
	}
	if err := u.Check("tls"); err != nil {
		return nil, nil, err
	}
	c.User, c.Passwd, c.DBName = u.User, u.Password.Reveal(), u.Path
	if c.User == "" {
		return nil, nil, bad("user: expected one, as in mysql://USER:password@host/database")
	}
	if c.DBName == "" || strings.Contains(c.DBName, "/") {
		return nil, nil, bad("database: expected one name, as in mysql://user:password@host/DATABASE")
	}
	addrs := u.HostPorts(3306)
	if socket := u.Param("socket"); socket != "" {
		c.Net, c.Addr, addrs = "unix", socket, []string{socket}
	} else {
		c.Net, c.Addr = "tcp", addrs[0]
	}
	if c.TLS, err = secured(u); err != nil {
		return nil, nil, err
	}
	c.Timeout = 3 * time.Second
	c.ReadTimeout, c.WriteTimeout = silence, silence
	c.Logger = &driver.NopLogger{} // what it tells is in the errors too
	c.CheckConnLiveness = true
	// Rules that the tables rely on, whatever the server's defaults are.
	c.Params = map[string]string{"sql_mode": "'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION'"}
	return c, addrs, nil
}

// secured returns how to speak TLS to the server, nil for not at all.
func secured(u *engine.URL) (*tls.Config, error) {
	want := false
	for _, name := range []string{"ca", "cert", "key", "server-name"} {
		want = want || u.Param(name) != ""
	}
	switch value := u.Param("tls"); value {
	case "true":
		want = true
	case "", "false":
		if value == "false" && want {
			return nil, sys.E(sys.Op("mysql.ParseURL"), sys.Invalid, "tls: it is false, and another parameter is about TLS")
		}
	default:
		return nil, sys.E(sys.Op("mysql.ParseURL"), sys.Invalid, fmt.Sprintf("tls: expected true or false, found %q", value))
	}
	if !want {
		return nil, nil
	}
	return u.TLS()
}

// Numbers of the server's errors.
const (
	errTooManyConnections = 1040
	errDatabaseDenied     = 1044
	errPassword           = 1045
	errNotReady           = 1047 // a Galera node outside of the majority
	errNull               = 1048 // the fence is another's
	errNoDatabase         = 1049
	errDiskFull           = 1021
	errTableFull          = 1114
	errLockTimeout        = 1205
	errDuplicate          = 1062 // a row is there of which the leader knew that it was not
	errDeadlock           = 1213
	errNotAllowed         = 1142
	errNoTable            = 1146
	errUserConnections    = 1226
	errShutdown           = 1053
	errKilled             = 1317
	errNoSpaceWrite       = 3    // EE_WRITE: a temporary file or the binary log
	errReadOnly           = 1290 // --read-only
	errReadOnlyMode       = 1836
	errFunction           = 1419
	errDuringCommit       = 1180 // whether it came through the fence tells
)

// errLags is of a server that lacks what another one has acknowledged.
var errLags = &driver.MySQLError{Number: errReadOnly, Message: "the replica lags behind"}

// errGivenUp is of a transaction that the server gave up without saying so.
var errGivenUp = &driver.MySQLError{Number: errDeadlock, Message: "the server has given up the transaction"}

func number(err error) uint16 {
	if e, ok := errors.AsType[*driver.MySQLError](err); ok {
		return e.Number
	}
	return 0
}

// explain says which part is wrong, and of what kind it is for a caller.
func (e *Engine) explain(op sys.Op, err error) error {
	if _, ok := errors.AsType[*sys.Error](err); ok {
		return err
	}
	where := sys.Subject(strings.Join(e.hosts.addrs, ",") + "/" + e.dsn.DBName)
	kind, cause := sys.Unavailable, "the database does not answer: see that it runs and that the nodes reach it"
	switch number(err) {
	case errPassword:
		kind, cause = sys.Access, fmt.Sprintf("user or password: the server does not let %q in", e.dsn.User)
	case errDatabaseDenied, errNotAllowed:
		kind, cause = sys.Access, fmt.Sprintf("database: user %q needs all rights on it", e.dsn.User)
	case errNoDatabase:
		kind, cause = sys.Invalid, "database: there is none of this name: create it"
	case errTooManyConnections, errUserConnections:
		cause = "the server has no connection to spare: raise max_connections"
	case errReadOnly, errReadOnlyMode:
		cause = "the server is read-only: name the one that takes writes, or SET GLOBAL read_only = 0"
	case errFunction:
		kind, cause = sys.Access, "the server's binary log is on, and the user may not make the function of the view: SET GLOBAL log_bin_trust_function_creators = 1 until the tables are made"
	case errNotReady:
		cause = "this Galera node is not in the majority of its cluster"
	case errDiskFull, errTableFull, errNoSpaceWrite:
		kind, cause = sys.NoSpace, "the server's disk is full"
	default:
		if errors.Is(err, driver.ErrNoTLS) {
			kind, cause = sys.Invalid, "TLS: the server does not speak it: set its ssl_cert and ssl_key"
		}
		if name, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
			kind, cause, err = sys.Invalid, "TLS: the server's certificate is not for this name or not from a known authority", name
		}
	}
	return sys.E(op, kind, where, fmt.Errorf("%s: %w", cause, err))
}

// lost reports whether an error is of the connection, not of the server.
func lost(err error) bool {
	if err == nil || number(err) != 0 {
		return false
	}
	_, network := errors.AsType[net.Error](err)
	return network || errors.Is(err, driver.ErrInvalidConn) || errors.Is(err, sqldriver.ErrBadConn) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// passing reports whether the same transaction may succeed in a moment.
func passing(err error) bool {
	switch number(err) {
	case errDeadlock, errLockTimeout, errTooManyConnections, errUserConnections, errNotReady, errShutdown, errKilled,
		errReadOnly, errReadOnlyMode,
		errDuringCommit:
		return true
	}
	return lost(err)
}
