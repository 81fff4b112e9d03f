package redis

import (
	"crypto/tls"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/koinon/koinon/internal/engine"
	"github.com/koinon/koinon/internal/sys"
)

const (
	port         = 6379
	sentinelPort = 26379
	// connections is how many calls go on at once to one server.
	connections = 16
	// dialMax and callMax bound one try: a server that hangs is given up, and
	// whoever repeats the call finds out where it is now.
	dialMax = 3 * time.Second
	callMax = 10 * time.Second
)

// place is a URL understood.
type place struct {
	// kind is "", "cluster" or "sentinel".
	kind     string
	addrs    []string
	network  string
	master   string
	db       int
	replicas int
	tls      *tls.Config
	url      *engine.URL
}

// parse reads what a URL says. Its errors name the part that is wrong.
func parse(u *engine.URL) (*place, error) {
	bad := func(format string, args ...any) (*place, error) {
		return nil, sys.E(sys.Op("redis URL"), sys.Invalid, sys.Subject(u.String()), fmt.Sprintf(format, args...))
	}
	if err := u.Check("replicas", "sentinel-user", "sentinel-password"); err != nil {
		return nil, err
	}
	p := &place{url: u, network: "tcp"}
	base, kind, _ := strings.Cut(u.Scheme, "+")
	if base != "redis" && base != "rediss" || kind != "" && kind != "cluster" && kind != "sentinel" || strings.HasSuffix(u.Scheme, "+") {
		return bad("scheme: expected redis, redis+cluster or redis+sentinel, or rediss for TLS, found %q", u.Scheme)
	}
	p.kind = kind
	var err error
	if base == "rediss" {
		if p.tls, err = u.TLS(); err != nil {
			return nil, err
		}
	} else if u.Param("ca") != "" || u.Param("cert") != "" || u.Param("server-name") != "" {
		return bad("ca, cert and server-name are about TLS: write rediss in place of redis")
	}
	if text := u.Param("replicas"); text != "" {
		if p.replicas, err = strconv.Atoi(text); err != nil || p.replicas < 0 || p.replicas > 9 {
			return bad("replicas: expected how many replicas must have a block, 0 to 9, found %q", text)
		}
	}
	db := u.Path
	switch kind {
	case "cluster":
		if u.Path != "" && u.Path != "0" {
			return bad("database: a Redis Cluster has only number 0, found %q", u.Path)
		}
		p.addrs = u.HostPorts(port)
	case "sentinel":
		p.addrs = u.HostPorts(sentinelPort)
		p.master, db, _ = strings.Cut(u.Path, "/")
		if p.master == "" {
			return bad("master: expected its name, as in redis+sentinel://host1,host2/MASTER/0")
		}
	default:
		if p.addrs = u.HostPorts(port); len(p.addrs) > 1 {
			return bad("host: expected one, found %d: for a Redis Cluster write redis+cluster, for Sentinels redis+sentinel", len(p.addrs))
		}
	}
	if socket := u.Param("socket"); socket != "" {
		if kind != "" {
			return bad("socket: a %s is reached by host and port", kind)
		}
		p.network, p.addrs = "unix", []string{socket}
	}
	if db != "" {
		if p.db, err = strconv.Atoi(db); err != nil || p.db < 0 {
			return bad("database: expected a number, found %q", db)
		}
	}
	return p, nil
}

// quiet drops what the client library says to nobody: its errors come back
// from the calls.
func quiet() { logging.Disable() }

// connect makes the client. It does not speak to the server yet.
func (p *place) connect() redis.UniversalClient {
	off := &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	dial := p.dialer()
	u := p.url
	switch p.kind {
	case "cluster":
		return redis.NewClusterClient(&redis.ClusterOptions{
			Addrs: p.addrs, ClientName: "koinon", Protocol: 2, Username: u.User, Password: u.Password.Reveal(), TLSConfig: p.tls,
			MaxRetries: -1, DialTimeout: dialMax, DialerRetries: 1, ReadTimeout: callMax, WriteTimeout: callMax, ContextTimeoutEnabled: true,
			Dialer: dial, PoolSize: connections, DisableIdentity: true, MaintNotificationsConfig: off,
		})
	case "sentinel":
		return redis.NewFailoverClient(&redis.FailoverOptions{
			MasterName: p.master, SentinelAddrs: p.addrs, SentinelUsername: u.Param("sentinel-user"), SentinelPassword: u.Param("sentinel-password"),
			ClientName: "koinon", Protocol: 2, Username: u.User, Password: u.Password.Reveal(), DB: p.db, TLSConfig: p.tls,
			MaxRetries: -1, DialTimeout: dialMax, DialerRetries: 1, ReadTimeout: callMax, WriteTimeout: callMax, ContextTimeoutEnabled: true,
			Dialer: dial, PoolSize: connections, DisableIdentity: true,
		})
	}
	return redis.NewClient(&redis.Options{
		Network: p.network, Addr: p.addrs[0], ClientName: "koinon", Protocol: 2, Username: u.User, Password: u.Password.Reveal(), DB: p.db, TLSConfig: p.tls,
		MaxRetries: -1, DialTimeout: dialMax, DialerRetries: 1, ReadTimeout: callMax, WriteTimeout: callMax, ContextTimeoutEnabled: true,
		Dialer: dial, PoolSize: connections, DisableIdentity: true, MaintNotificationsConfig: off,
	})
}
