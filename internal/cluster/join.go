package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/koinon/koinon/internal/auth"
	"github.com/koinon/koinon/internal/cluster/clusterpb"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/wire"
)

const (
	opJoin = sys.Op("cluster.Join")
	// echoTimeout is how long a machine that joins may take to answer at the
	// address that it gives.
	echoTimeout = time.Second
	// passTimeout is how long another node may take to sign.
	passTimeout = 10 * time.Second
)

// Admission answers machines that want to join. Any node takes the request; one
// that has no CA passes it to one that has. All fields but CA are required.
type Admission struct {
	Client *Client  // to the other nodes, on this node's own account
	CA     *auth.CA // nil on a node that does not have the CA's key
	CAPEM  []byte   // the CA's certificate
	Logger *slog.Logger

	gate gate
}

// Register adds the method to a server that lets strangers call it.
func (a *Admission) Register(srv *wire.Server) { srv.Handle(MethodJoin, a.serve) }

func (a *Admission) serve(ctx context.Context, req *wire.Request) (wire.Response, error) {
	j := &clusterpb.JoinRequest{}
	if err := pb.Unmarshal(req.Header, j); err != nil {
		return wire.Response{}, sys.E(opJoin, sys.Invalid, "the request to join cannot be read: use the same version of koinon on all machines")
	}
	if req.Peer.Node != 0 { // passed on by the node that the machine asked
		if a.CA == nil {
			return wire.Response{}, sys.E(opJoin, sys.NotSupported, "this node does not have the CA's key")
		}
		return reply(a.sign(ctx, j))
	}
	host, _, err := net.SplitHostPort(req.Addr)
	if err != nil {
		return wire.Response{}, sys.E(opJoin, err)
	}
	leave, err := a.gate.enter(host, time.Now())
	if err != nil {
		return wire.Response{}, err
	}
	r, err := a.admit(ctx, j)
	leave(sys.Is(err, sys.Access), time.Now())
	if err != nil {
		a.Logger.Warn("a machine may not join", "from", req.Addr, "token", j.Token, "addr", j.Addr, "err", err)
		return wire.Response{}, err
	}
	if err := echo(ctx, j); err != nil {
		r.Warning = fmt.Sprintf("node n%d is not reached at %s, the address it gives: %v; other nodes need that address: open the port, or start it again with --advertise HOST:PORT", r.Node, j.Addr, err)
	}
	a.Logger.Info("a machine joined", "node", sys.NodeID(r.Node), "from", req.Addr, "addr", j.Addr, "token", j.Token, "version", j.Version, "warning", r.Warning)
	return reply(r, nil)
}

func reply(r *clusterpb.JoinReply, err error) (wire.Response, error) {
	if err != nil {
		return wire.Response{}, err
	}
	return wire.Response{Payload: pb.Marshal(r)}, nil
}

// admit signs here, or has another node sign.
func (a *Admission) admit(ctx context.Context, j *clusterpb.JoinRequest) (*clusterpb.JoinReply, error) {
	if err := checkMember(j.Addr, j.Zone); err != nil {
		return nil, err
	}
	if err := auth.CheckPublicKey(j.PublicKey); err != nil {
		return nil, err
	}
	if a.CA != nil {
		return a.sign(ctx, j)
	}
	var silent []string
	for _, addr := range a.Client.Addrs() { // this node is among them, and says what the others say
		r, err := a.pass(ctx, addr, j)
		switch sys.KindOf(err) {
		case sys.NotSupported: // it has no key either
		case sys.Unavailable:
			silent = append(silent, addr)
		default:
			return r, err
		}
	}
	if len(silent) > 0 {
		return nil, sys.E(opJoin, sys.Unavailable, "no node that answers has the key of the cluster's CA, which signs the certificates of new nodes; no answer from "+strings.Join(silent, ", "))
	}
	return nil, sys.E(opJoin, sys.NotSupported, "no node has the key of the cluster's CA, which signs the certificates of new nodes: set `ca_key` under [tls] in the node.toml of at least one and start it again")
}

// pass hands the request to another node.
func (a *Admission) pass(ctx context.Context, addr string, j *clusterpb.JoinRequest) (*clusterpb.JoinReply, error) {
	ctx, cancel := context.WithTimeout(ctx, passTimeout)
	defer cancel()
	return call(ctx, a.Client.conn(addr, false), j)
}

func call(ctx context.Context, c wire.Caller, j *clusterpb.JoinRequest) (*clusterpb.JoinReply, error) {
	raw, err := c.Call(ctx, MethodJoin, pb.Marshal(j), nil)
	if err != nil {
		return nil, err
	}
	defer raw.Release()
	r := &clusterpb.JoinReply{}
	if err := pb.Unmarshal(raw.Payload, r); err != nil {
		return nil, sys.E(opJoin, sys.Corrupt, err)
	}
	return r, nil
}

// sign has the cluster admit the machine and makes its certificate. Should the
// answer get lost, the same key gets the same ID at the next try.
func (a *Admission) sign(ctx context.Context, j *clusterpb.JoinRequest) (*clusterpb.JoinReply, error) {
	if err := auth.CheckPublicKey(j.PublicKey); err != nil {
		return nil, err
	}
	res, err := a.Client.Change(ctx, &clusterpb.Command{Op: &clusterpb.Command_Admit{Admit: &clusterpb.Admit{
		Token: j.Token, SecretHash: auth.SecretHash(j.Secret), KeyHash: auth.KeyHash(j.PublicKey), Addr: j.Addr, Zone: j.Zone, Weight: j.Weight}}})
	if err != nil {
		return nil, err
	}
	host, _, err := net.SplitHostPort(j.Addr)
	if err != nil {
		return nil, sys.E(opJoin, sys.Invalid, err)
	}
	cert, err := a.CA.SignNode(sys.NodeID(res.Node), j.PublicKey, []string{host})
	if err != nil {
		return nil, err
	}
	r := &clusterpb.JoinReply{Node: res.Node, Ca: a.CAPEM, Cert: cert}
	for _, m := range a.Client.Map().GetMembers() {
		if m.Addr != j.Addr {
			r.Seeds = append(r.Seeds, m.Addr)
		}
	}
	return r, nil
}

// echo finds out whether the machine's address leads to that machine.
func echo(ctx context.Context, j *clusterpb.JoinRequest) error {
	ctx, cancel := context.WithTimeout(ctx, echoTimeout)
	defer cancel()
	d := tls.Dialer{Config: auth.CheckEcho(j.PublicKey)}
	c, err := d.DialContext(ctx, "tcp", j.Addr)
	if err != nil {
		return err
	}
	return c.Close()
}

// Joined is what a cluster answers to a machine that it has let in.
type Joined struct {
	Node          sys.NodeID
	CAPEM, Cert   []byte
	Seeds         []string // addresses of other nodes
	Warning       string   // what a person should know; may be empty
	SeedConnected string   // the seed that answered
}

// JoinRequest is what a machine asks with.
type JoinRequest struct {
	Token   auth.Token
	Key     *auth.JoinKey
	Addr    string // under which the other nodes will reach it
	Zone    string // may be empty
	Weight  uint64 // its share of the blocks, in GiB
	Version string
}

// Join asks the seeds in turn to let this machine in, again and again while
// they cannot be reached or have no majority, until ctx is done. What is wrong
// with the token or the request is returned at once; that it waits is told once.
func Join(ctx context.Context, seeds []string, req JoinRequest, log *slog.Logger) (*Joined, error) {
	j := &clusterpb.JoinRequest{Token: req.Token.ID, Secret: req.Token.Secret[:], PublicKey: req.Key.Public(),
		Addr: req.Addr, Zone: req.Zone, Weight: req.Weight, Version: req.Version}
	var last error
	began, told := time.Now(), false
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 2*time.Second) {
		var denied error
		for _, seed := range seeds {
			r, err := joinAt(ctx, seed, req.Token, j, log)
			if err == nil {
				others := append([]string{seed}, slices.DeleteFunc(r.Seeds, func(s string) bool { return s == seed })...)
				return &Joined{Node: sys.NodeID(r.Node), CAPEM: r.Ca, Cert: r.Cert, Seeds: others, Warning: r.Warning, SeedConnected: seed}, nil
			}
			log.Debug("cannot join yet", "seed", seed, "err", err)
			if ctx.Err() != nil && last != nil {
				break // it says less than what came before
			}
			last = sys.E(opJoin, sys.Subject(seed), err)
			switch sys.KindOf(err) {
			case sys.Unavailable, sys.Busy, sys.NotLeader, sys.Interrupted:
			default:
				denied = last
			}
		}
		if denied != nil {
			return nil, denied
		}
		if ctx.Err() == nil && time.Since(began) > tellWaitAfter && !told {
			told = true
			log.Warn("no answer yet, waiting for a node that lets this machine in", "err", last)
		}
		select {
		case <-ctx.Done():
			return nil, last
		case <-time.After(pause):
		}
	}
}

// joinAt asks one seed, by one connection that trusts nobody but the cluster of
// the token.
func joinAt(ctx context.Context, seed string, t auth.Token, j *clusterpb.JoinRequest, log *slog.Logger) (_ *clusterpb.JoinReply, err error) {
	c := wire.NewClient(seed, wire.ClientConfig{TLS: t.ClientTLS(), Logger: log})
	defer func() { err = errors.Join(err, c.Close()) }()
	ctx, cancel := context.WithTimeout(ctx, DefaultTimeout)
	defer cancel()
	return call(ctx, c, j)
}
