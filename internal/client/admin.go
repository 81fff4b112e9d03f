package client

import (
	"context"
	"log/slog"
	"strings"
	"time"

	"github.com/koinon/koinon/internal/auth"
	"github.com/koinon/koinon/internal/cluster"
	"github.com/koinon/koinon/internal/cluster/clusterpb"
	"github.com/koinon/koinon/internal/config"
	"github.com/koinon/koinon/internal/sys"
)

// Admin looks after the nodes of a cluster. Its methods may be called
// concurrently.
type Admin struct {
	cluster *cluster.Client
	creds   *auth.Credentials
}

// ConnectAdmin reaches the cluster through any of the configured nodes.
func ConnectAdmin(ctx context.Context, cfg *config.Client, log *slog.Logger) (*Admin, error) {
	creds, err := auth.LoadCredentials(cfg.TLS.CA, cfg.TLS.Cert, cfg.TLS.Key)
	if err != nil {
		return nil, err
	}
	cc, err := dial(ctx, cfg, log)
	if err != nil {
		return nil, err
	}
	return &Admin{cluster: cc, creds: creds}, nil
}

// Close ends the connections.
func (a *Admin) Close() error { return a.cluster.Close() }

// NewToken is a join token as its maker sees it.
type NewToken struct {
	Token   string    `json:"token"` // the secret
	ID      string    `json:"id"`
	Expires time.Time `json:"expires"`
	Seed    string    `json:"seed"` // the address of a node to join at
}

// NewToken makes a token that lets one machine join within life.
func (a *Admin) NewToken(ctx context.Context, life time.Duration, zone string) (*NewToken, error) {
	t, err := auth.NewToken(a.creds)
	if err != nil {
		return nil, err
	}
	if err := a.cluster.AddToken(ctx, t, life, zone); err != nil {
		return nil, err
	}
	return &NewToken{Token: t.Encode(), ID: t.ID, Expires: time.Now().Add(life), Seed: a.cluster.Addrs()[0]}, nil
}

// TokenInfo is a join token as the cluster keeps it.
type TokenInfo struct {
	ID      string     `json:"id"`
	State   string     `json:"state"` // open, used, expired, void
	Node    sys.NodeID `json:"node,omitempty"`
	Created time.Time  `json:"created"`
	Expires time.Time  `json:"expires"`
	Used    *time.Time `json:"used,omitempty"`
	Creator string     `json:"creator"`
	Zone    string     `json:"zone,omitempty"`
	Wrong   uint32     `json:"wrong_secrets"`
}

// Tokens returns the join tokens, also those that are of no use any more.
func (a *Admin) Tokens(ctx context.Context) ([]TokenInfo, error) {
	tokens, err := a.cluster.Tokens(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]TokenInfo, 0, len(tokens))
	for _, t := range tokens {
		out = append(out, tokenInfo(t, time.Now()))
	}
	return out, nil
}

func tokenInfo(t *clusterpb.Token, now time.Time) TokenInfo {
	i := TokenInfo{ID: t.Id, Node: sys.NodeID(t.Node), Created: time.Unix(0, t.CreatedNs), Expires: time.Unix(0, t.ExpiresNs),
		Creator: t.Creator, Zone: t.Zone, Wrong: t.Wrong, State: "open"}
	switch {
	case t.Node != 0:
		used := time.Unix(0, t.UsedNs)
		i.State, i.Used = "used", &used
	case cluster.Void(t):
		i.State = "void"
	case now.After(i.Expires):
		i.State = "expired"
	}
	return i
}

// RemoveToken makes a token useless. It takes the token's name, or the whole
// token.
func (a *Admin) RemoveToken(ctx context.Context, id string) error {
	if t, err := auth.ParseToken(id); err == nil {
		id = t.ID
	}
	return a.cluster.RemoveToken(ctx, strings.ToLower(id))
}
