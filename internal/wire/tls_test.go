package wire_test

import (
	"context"
	"crypto/tls"
	"strings"
	"testing"

	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/wire"
)

// TestOnlyTheClusterGetsIn connects with the wrong papers. Both sides must say
// what is wrong, and the caller must learn that trying again is useless.
func TestOnlyTheClusterGetsIn(t *testing.T) {
	w := newWorld(t, nil)
	sameName := newCA(t, "alpha")
	beta := newCA(t, "beta")
	naked := nodeCreds(t, w.ca, 2).ClientTLS()
	naked.Certificates = nil
	trusting := func(cfg *tls.Config) *tls.Config {
		cfg.VerifyConnection = nil // let the server be the one who refuses
		return cfg
	}
	old := nodeCreds(t, w.ca, 2).ClientTLS()
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	for _, tc := range []struct {
		name   string
		tls    *tls.Config
		client string // in the client's error
		server string // in the server's log
	}{
		{"client trusts another CA", nodeCreds(t, sameName, 2).ClientTLS(), "not issued by the CA that is trusted here", ""},
		{"client of another cluster", nodeCreds(t, beta, 2).ClientTLS(), `belongs to cluster \"alpha\", this is cluster \"beta\"`, ""},
		{"server sees another CA", trusting(nodeCreds(t, sameName, 2).ClientTLS()), "refuses our certificate", "not issued by the CA that is trusted here"},
		{"server sees another cluster", trusting(nodeCreds(t, beta, 2).ClientTLS()), "refuses our certificate", `belongs to cluster`},
		{"no certificate", naked, "refuses our certificate", "didn't provide a certificate"},
		{"another node expected", nodeCreds(t, w.ca, 2).ClientTLSFor(7), "expected node n7 at this address, found node n1", ""},
		{"TLS 1.2", old, "protocol version", "unsupported versions"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := w.client(func(cfg *wire.ClientConfig) { cfg.TLS = tc.tls })
			_, err := c.Call(context.Background(), mEcho, nil, nil)
			want := strings.ReplaceAll(tc.client, `\"`, `"`)
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("error is %v, expected one that says %q", err, want)
			}
			if k := sys.KindOf(err); k != sys.Access && tc.tls != old || !wire.IsUnsent(err) {
				t.Errorf("kind is %v, unsent %v; expected %v, true", sys.KindOf(err), wire.IsUnsent(err), sys.Access)
			}
			if tc.server != "" {
				w.awaitLog(tc.server)
			}
		})
	}
}

func TestClientsAndNodesGetIn(t *testing.T) {
	w := newWorld(t, nil)
	alice, err := w.ca.IssueClient("alice")
	if err != nil {
		t.Fatal(err)
	}
	for _, cfg := range []*tls.Config{alice.ClientTLS(), nodeCreds(t, w.ca, 3).ClientTLSFor(1)} {
		c := w.client(func(c *wire.ClientConfig) { c.TLS = cfg; c.Class = wire.ClassBulk })
		if _, err := c.Call(context.Background(), mEcho, nil, nil); err != nil {
			t.Error(err)
		}
	}
	w.awaitLog(`peer="client alice"`)
	w.awaitLog(`peer="node n3"`)
	w.awaitLog(`class=bulk`)
}

func TestNoPlaintextMode(t *testing.T) {
	for name, make := range map[string]func(){
		"server": func() { wire.NewServer(wire.ServerConfig{}) },
		"client": func() { wire.NewClient("x:1", wire.ClientConfig{}) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("a %s without TLS was made", name)
				}
			}()
			make()
		}()
	}
}
