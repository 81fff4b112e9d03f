package mysql

import (
	"crypto/tls"
	"crypto/x509"
	sqldriver "database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"time"

	driver "github.com/go-sql-driver/mysql"

	"github.com/koinon/koinon/internal/sys"
)

// ParseURL reads mysql://user:password@host:port/database. The port is 3306
// unless given. Parameters after "?" are socket=PATH (instead of host and
// port), tls=true (the server's certificate is checked against the host's
// name) and ca=FILE (PEM, instead of the system's authorities; implies tls).
// Errors name the part that is wrong and never the password.
func ParseURL(raw string) (*driver.Config, error) {
	bad := func(cause string) error { return sys.E(sys.Op("mysql.ParseURL"), sys.Invalid, cause) }
	u, err := url.Parse(raw)
	if err != nil { // which repeats the URL
		return nil, bad("not a URL: expected mysql://user:password@host:port/database, with %XX for special characters")
	}
	c := driver.NewConfig()
	if u.Scheme != "mysql" {
		return nil, bad(fmt.Sprintf("scheme: expected mysql, found %q", u.Scheme))
	}
	c.User = u.User.Username()
	if c.User == "" {
		return nil, bad("user: expected one, as in mysql://USER:password@host/database")
	}
	c.Passwd, _ = u.User.Password()
	c.DBName = strings.TrimPrefix(u.Path, "/")
	if c.DBName == "" || strings.Contains(c.DBName, "/") {
		return nil, bad("database: expected one name, as in mysql://user:password@host/DATABASE")
	}
	host, port := u.Hostname(), u.Port()
	if port == "" {
		port = "3306"
	}
	c.Net, c.Addr = "tcp", net.JoinHostPort(host, port)
	for key, values := range u.Query() {
		if err := parameter(c, host, key, values[len(values)-1]); err != nil {
			return nil, err
		}
	}
	if c.Net == "tcp" && host == "" {
		return nil, bad("host: expected one, or ?socket=PATH")
	}
	c.Timeout = 3 * time.Second
	c.ReadTimeout = 30 * time.Second
	c.WriteTimeout = 30 * time.Second
	c.RejectReadOnly = true
	c.Logger = &driver.NopLogger{} // what it tells is in the errors too
	c.CheckConnLiveness = true
	// Rules that the tables rely on, whatever the server's defaults are.
	c.Params = map[string]string{"sql_mode": "'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION'"}
	return c, nil
}

func parameter(c *driver.Config, host, key, value string) error {
	bad := func(cause string) error { return sys.E(sys.Op("mysql.ParseURL"), sys.Invalid, cause) }
	switch key {
	case "socket":
		c.Net, c.Addr = "unix", value
	case "tls":
		switch value {
		case "true":
			if c.TLS == nil {
				c.TLS = &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12}
			}
		case "false":
		default:
			return bad(fmt.Sprintf("tls: expected true or false, found %q", value))
		}
	case "ca":
		pem, err := os.ReadFile(value)
		if err != nil {
			return sys.E(sys.Op("mysql.ParseURL"), sys.Invalid, "ca", err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return bad(fmt.Sprintf("ca: expected certificates in PEM, found none in %s", value))
		}
		c.TLS = &tls.Config{ServerName: host, MinVersion: tls.VersionTLS12, RootCAs: pool}
	default:
		return bad(fmt.Sprintf("parameter %q: expected socket, tls or ca", key))
	}
	return nil
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
	errDeadlock           = 1213
	errNotAllowed         = 1142
	errUserConnections    = 1226
	errShutdown           = 1053
	errKilled             = 1317
)

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
	where := sys.Subject(e.dsn.Addr + "/" + e.dsn.DBName)
	kind, cause := sys.Unavailable, "the database does not answer"
	switch number(err) {
	case errPassword:
		kind, cause = sys.Access, fmt.Sprintf("user or password: the server does not let %q in", e.dsn.User)
	case errDatabaseDenied, errNotAllowed:
		kind, cause = sys.Access, fmt.Sprintf("database: user %q needs all rights on it", e.dsn.User)
	case errNoDatabase:
		kind, cause = sys.Invalid, "database: there is none of this name: create it"
	case errTooManyConnections, errUserConnections:
		cause = "the server has no connection to spare: raise max_connections"
	case errDiskFull, errTableFull:
		kind, cause = sys.NoSpace, "the server's disk is full"
	default:
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
	case errDeadlock, errLockTimeout, errTooManyConnections, errUserConnections, errNotReady, errShutdown, errKilled:
		return true
	}
	return lost(err)
}
