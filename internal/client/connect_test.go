package client

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"

	"github.com/koinon/koinon/internal/auth"
	"github.com/koinon/koinon/internal/config"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/wire"
)

func identify(cs tls.ConnectionState) (wire.Identity, error) {
	id, err := auth.PeerIdentity(cs)
	return wire.Identity(id), err
}

// A command shows its certificate once: the next one, which is another process and has nothing but the files, comes with a pass. A
// configuration that is of another cluster than its certificate is refused before anybody is asked.
func TestTheNextCommandHasAPass(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	ca, err := auth.NewCA("lab")
	if err != nil {
		t.Fatal(err)
	}
	node, err := ca.IssueNode(1, nil)
	if err != nil {
		t.Fatal(err)
	}
	ann, err := ca.IssueClient("ann")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := ann.Save(dir, "ann"); err != nil {
		t.Fatal(err)
	}
	const method = wire.Method(1)
	server := wire.NewServer(wire.ServerConfig{TLS: node.ServerTLS(), Identify: identify, Logger: slog.New(slog.DiscardHandler)})
	server.Handle(method, func(_ context.Context, req *wire.Request) (wire.Response, error) {
		return wire.Response{Payload: []byte(req.Peer.String())}, nil
	})
	l, err := wire.Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	defer func() {
		if err := errors.Join(server.Close(), <-served); err != nil {
			t.Error(err)
		}
	}()
	addr := l.Addr().String()
	cfg := &config.Client{Cluster: "lab", Nodes: []string{addr}}
	cfg.TLS.CA, cfg.TLS.Cert, cfg.TLS.Key = filepath.Join(dir, auth.CACertFile), filepath.Join(dir, "ann.crt"), filepath.Join(dir, "ann.key")
	for i := range 3 {
		c, err := clusterConfig(cfg, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if i > 0 {
			c.TLS.VerifyConnection = func(tls.ConnectionState) error { return errors.New("TLS was used") }
		}
		w := wire.NewClient(addr, wire.ClientConfig{TLS: c.TLS, Identify: identify, Passes: c.Passes, Logger: c.Logger})
		reply, err := w.Call(t.Context(), method, nil, nil)
		if err != nil || string(reply.Payload) != "client ann" {
			t.Errorf("command %d: %v", i, err)
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	}
	cfg.Cluster = "shop"
	if _, err := clusterConfig(cfg, slog.New(slog.DiscardHandler)); !sys.Is(err, sys.Invalid) || !strings.Contains(err.Error(), `of cluster "lab"`) {
		t.Errorf("a configuration of another cluster: %v", err)
	}
}
