package redis

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/koinon/koinon/internal/sys"
)

// passing begin the errors of servers that may answer a little later.
var passing = []string{"LOADING", "CLUSTERDOWN", "MASTERDOWN", "TRYAGAIN", "READONLY", "MOVED", "ASK", "NOREPLICAS", "BUSY", "ERR max number of clients", "UNBLOCKED"}

// explain says what an error of the client library means, and of what kind it
// is. Anything not known may pass.
func (s *Store) explain(ctx context.Context, op sys.Op, subject sys.Subject, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*sys.Error](err); ok {
		return err
	}
	if ctx.Err() != nil && errors.Is(context.Cause(ctx), context.Canceled) {
		return sys.E(op, sys.Interrupted, subject, context.Cause(ctx))
	}
	kind, cause := s.meaning(err)
	if kind != sys.NoSpace && kind != sys.Corrupt && s.opened.Load() {
		kind = sys.Unavailable // it was right before: somebody is changing it
	}
	if cause == "" {
		return sys.E(op, kind, subject, fmt.Errorf("%s: %w", s.where, err))
	}
	return sys.E(op, kind, subject, fmt.Errorf("%s: %s: %w", s.where, cause, err))
}

func (s *Store) meaning(err error) (sys.Kind, string) {
	text := err.Error()
	has := func(prefixes ...string) bool {
		for _, p := range prefixes {
			if strings.HasPrefix(text, p) {
				return true
			}
		}
		return false
	}
	_, verification := errors.AsType[*tls.CertificateVerificationError](err)
	_, host := errors.AsType[x509.HostnameError](err)
	_, authority := errors.AsType[x509.UnknownAuthorityError](err)
	_, record := errors.AsType[tls.RecordHeaderError](err)
	switch {
	case has("OOM"):
		return sys.NoSpace, "Redis has no memory left: raise maxmemory, or add servers"
	case has("MISCONF") && strings.Contains(text, "No space left"), has("MISCONF") && strings.Contains(text, "RDB"):
		return sys.NoSpace, "Redis cannot save to its disk"
	case has("WRONGTYPE"):
		return sys.Corrupt, "the key holds something else"
	case s.place.kind == "sentinel" && strings.Contains(text, "all sentinels") && (strings.Contains(text, "NOAUTH") || strings.Contains(text, "WRONGPASS")):
		return sys.Access, "the Sentinels ask for a password of their own: add ?sentinel-password=... (and sentinel-user=...) to the URL"
	case has("WRONGPASS", "NOAUTH", "ERR AUTH", "ERR invalid password", "ERR Client sent AUTH"):
		return sys.Access, "user or password"
	case has("NOPERM"):
		return sys.Access, "user: it needs the rights that docs/operating/engines.md lists"
	case has("ERR DB index", "ERR invalid DB index"):
		return sys.Invalid, "database: the server has none of this number"
	case has("ERR This instance has cluster support disabled"):
		return sys.Invalid, "scheme: this is no Redis Cluster, write redis or rediss"
	case has("MOVED", "ASK", "CLUSTERDOWN") && s.place.kind != "cluster":
		return sys.Invalid, "scheme: this is a Redis Cluster, write redis+cluster"
	case verification || host || authority:
		return sys.Invalid, "TLS: the server's certificate is not for this name or not from a known authority"
	case record:
		return sys.Invalid, "TLS: the server does not speak it: write redis in place of rediss"
	case errors.Is(err, redis.ErrClosed):
		return sys.Unavailable, "the store is closed"
	case has(passing...):
		return sys.Unavailable, "Redis is not ready"
	}
	if s.place.tls != nil && !s.opened.Load() {
		return sys.Unavailable, "Redis does not answer, or does not speak TLS at this port"
	}
	return sys.Unavailable, "Redis does not answer"
}
