package cluster

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"time"

	"github.com/koinon/koinon/internal/auth"
	"github.com/koinon/koinon/internal/cluster/clusterpb"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/wire"
)

// The bounds of a token's life.
const (
	TokenLifeMin = time.Second
	TokenLifeMax = 30 * 24 * time.Hour
)

const opChange = sys.Op("cluster.Change")

// nameMax bounds zones and names of tokens, in bytes.
const nameMax = 64

// Propose runs a command on the leader's own replica. A refusal is an error.
func Propose(ctx context.Context, g rsm.Group, cmd *clusterpb.Command) (*clusterpb.Result, error) {
	raw, _, err := g.Propose(ctx, rsm.Command{NS: rsm.NSCluster, Body: pb.Marshal(cmd)})
	if err != nil {
		return nil, err
	}
	res := &clusterpb.Result{}
	if err := pb.Unmarshal(raw, res); err != nil {
		return nil, sys.E(opChange, sys.Corrupt, err)
	}
	return res, refused(cmd, res)
}

// serveChange takes the commands that come over the wire. A token is made in
// the name of whoever asks; admitting, and replacing the map, is for nodes; a
// node moves only itself.
func (s *Service) serveChange(ctx context.Context, req *wire.Request) (wire.Response, error) {
	cmd := &clusterpb.Command{}
	if err := pb.Unmarshal(req.Header, cmd); err != nil {
		return wire.Response{}, sys.E(opChange, sys.Invalid, err)
	}
	if err := checkChange(cmd, req.Peer); err != nil {
		return wire.Response{}, err
	}
	if admit := cmd.GetAdmit(); admit != nil {
		// A flood of invented tokens must not fill the log.
		var known bool
		err := s.Group.Read(ctx, rsm.NSCluster, func(r rsm.Reader) error {
			row, err := r.Get(tokenKey(admit.Token))
			known = row != nil
			return err
		})
		if err != nil {
			return LeaderHint(err)
		}
		if !known {
			return wire.Response{}, refused(cmd, &clusterpb.Result{Refusal: clusterpb.Refusal_TOKEN_UNKNOWN})
		}
	}
	res, err := s.propose(ctx, cmd)
	if err != nil {
		return LeaderHint(err)
	}
	return wire.Response{Header: pb.Marshal(res)}, nil
}

// drainTries bounds how often the map may change under a drain.
const drainTries = 20

// propose runs a command. The last member that stays is not drained: callers
// who remove different nodes at the same time do not see each other, so it is
// looked at here, and again when the map has changed meanwhile.
func (s *Service) propose(ctx context.Context, cmd *clusterpb.Command) (*clusterpb.Result, error) {
	op := cmd.GetSetState()
	if op == nil || op.State != clusterpb.State_DRAINING {
		return Propose(ctx, s.Group, cmd)
	}
	for range drainTries {
		var m *clusterpb.Map
		err := s.Group.Read(ctx, rsm.NSCluster, func(r rsm.Reader) (err error) {
			m, err = ReadMap(r)
			return err
		})
		if err != nil {
			return nil, err
		}
		x := member(m, op.Id)
		if x == nil || x.State == clusterpb.State_DRAINING {
			return Propose(ctx, s.Group, cmd)
		}
		if !slices.ContainsFunc(m.Members, func(o *clusterpb.Member) bool { return o.Id != op.Id && o.State != clusterpb.State_DRAINING }) {
			return nil, sys.E(opChange, sys.Invalid, sys.Subject(sys.NodeID(op.Id).String()),
				"it is the only node that does not leave already: add another one first (`koinon node token`)")
		}
		x.State = op.State
		res, err := Propose(ctx, s.Group, &clusterpb.Command{Expect: m.Epoch, Map: m})
		if !sys.Is(err, sys.StaleEpoch) {
			return res, err
		}
	}
	return nil, sys.E(opChange, sys.Busy, "the cluster map changes all the time: try again")
}

// checkChange refuses what the peer may not do or what makes no sense.
func checkChange(cmd *clusterpb.Command, peer wire.Identity) error {
	bad := func(kind sys.Kind, format string, args ...any) error {
		return sys.E(opChange, kind, fmt.Sprintf(format, args...))
	}
	switch op := cmd.Op.(type) {
	case *clusterpb.Command_AddToken:
		t := op.AddToken
		t.Creator = peer.String()
		if life := time.Duration(t.LifeNs); life < TokenLifeMin || life > TokenLifeMax {
			return bad(sys.Invalid, "a token cannot live for %v: choose %v to %v", life, TokenLifeMin, TokenLifeMax)
		}
		if len(t.Id) == 0 || len(t.Id) > nameMax || len(t.SecretHash) != len(auth.SecretHash(nil)) || len(t.Zone) > nameMax {
			return bad(sys.Invalid, "a token needs a name, the hash of its secret, and a zone of at most %d characters", nameMax)
		}
	case *clusterpb.Command_RemoveToken, *clusterpb.Command_RemoveMember:
	case *clusterpb.Command_SetState:
		if _, ok := clusterpb.State_name[int32(op.SetState.State)]; !ok {
			return bad(sys.Invalid, "there is no state %d of a member", op.SetState.State)
		}
	case *clusterpb.Command_SetAddr:
		if uint64(peer.Node) != op.SetAddr.Id {
			return bad(sys.Permission, "%v may not say where node n%d is: each node tells it of itself", peer, op.SetAddr.Id)
		}
		return checkMember(op.SetAddr.Addr, op.SetAddr.Zone)
	case *clusterpb.Command_Admit:
		if peer.Node == 0 {
			return bad(sys.Permission, "only a node may admit another")
		}
		return checkMember(op.Admit.Addr, op.Admit.Zone)
	default:
		return bad(sys.Permission, "the map is changed by the leader alone")
	}
	return nil
}

// refused puts a refusal in words: what is wrong and what to do. Everything
// that is wrong with a token is sys.Access.
func refused(cmd *clusterpb.Command, res *clusterpb.Result) error {
	op := opChange
	say := func(kind sys.Kind, format string, args ...any) error {
		return sys.E(op, kind, fmt.Sprintf(format, args...))
	}
	const again = "make a new one with `koinon node token`"
	switch res.Refusal {
	case clusterpb.Refusal_NONE:
		return nil
	case clusterpb.Refusal_STALE:
		return say(sys.StaleEpoch, "the map is of epoch %d, the change was made for epoch %d", res.Epoch, cmd.Expect)
	case clusterpb.Refusal_NO_CLUSTER:
		return say(sys.Unavailable, "the cluster has not come up yet: a majority of its nodes must run")
	case clusterpb.Refusal_TOKEN_EXISTS:
		return say(sys.Exist, "there is a token %s already: try again", cmd.GetAddToken().GetId())
	case clusterpb.Refusal_TOO_MANY:
		return say(sys.NoSpace, "there are %d tokens: remove some with `koinon node token rm`", tokensMax)
	case clusterpb.Refusal_TOKEN_UNKNOWN:
		return say(sys.Access, "the cluster knows no token %s: it was removed or never made: %s", cmd.GetAdmit().GetToken()+cmd.GetRemoveToken().GetId(), again)
	case clusterpb.Refusal_TOKEN_WRONG:
		return say(sys.Access, "the secret of token %s is wrong: use the token as `koinon node token` printed it", cmd.GetAdmit().GetToken())
	case clusterpb.Refusal_TOKEN_VOID:
		return say(sys.Access, "token %s came %d times with a wrong secret and is void: %s", cmd.GetAdmit().GetToken(), wrongMax, again)
	case clusterpb.Refusal_TOKEN_USED:
		return say(sys.Access, "token %s was used already, by node n%d, and a token lets in one machine: %s", cmd.GetAdmit().GetToken(), res.Node, again)
	case clusterpb.Refusal_TOKEN_EXPIRED:
		return say(sys.Access, "token %s has expired: %s", cmd.GetAdmit().GetToken(), again)
	case clusterpb.Refusal_MEMBER_REMOVED:
		if cmd.GetSetAddr() != nil {
			op = opRemoved // a node announces itself
		}
		id := res.Node + cmd.GetSetAddr().GetId() + cmd.GetRemoveMember().GetId() + cmd.GetSetState().GetId()
		return say(sys.Access, "node n%d was removed from the cluster: to come back it needs an empty directory and a new token (`koinon node token`)", id)
	case clusterpb.Refusal_MEMBER_UNKNOWN:
		return say(sys.NotExist, "the cluster has no such node: `koinon node ls` lists them")
	case clusterpb.Refusal_MEMBER_HOLDS:
		return say(sys.Busy, "node n%d still holds placement groups: they must move to other nodes first", cmd.GetRemoveMember().GetId())
	case clusterpb.Refusal_ADDR_TAKEN:
		addr := cmd.GetAdmit().GetAddr() + cmd.GetSetAddr().GetAddr()
		return say(sys.Exist, "node n%d has the address %s: choose another, or remove that node first", res.Node, addr)
	}
	return say(sys.NotSupported, "refused for reason %d, which this version does not know", res.Refusal)
}

// checkMember refuses an address nobody can connect to.
func checkMember(addr, zone string) error {
	host, port, err := net.SplitHostPort(addr)
	ip := net.ParseIP(host)
	if n, perr := strconv.ParseUint(port, 10, 16); err != nil || perr != nil || n == 0 || host == "" || len(addr) > 300 || ip != nil && ip.IsUnspecified() {
		return sys.E(opChange, sys.Invalid, fmt.Sprintf("%q is no address that others can connect to: give --advertise HOST:PORT", addr))
	}
	if len(zone) > nameMax {
		return sys.E(opChange, sys.Invalid, fmt.Sprintf("the zone has %d characters: use at most %d", len(zone), nameMax))
	}
	return nil
}

// Change has the leader run a command. The command may be run twice after a
// broken connection; all of them answer the same then, but that removing finds
// nothing any more.
func (c *Client) Change(ctx context.Context, cmd *clusterpb.Command) (*clusterpb.Result, error) {
	reply, err := c.CallLeader(ctx, MethodChange, pb.Marshal(cmd), nil)
	if err != nil {
		return nil, err
	}
	defer reply.Release()
	res := &clusterpb.Result{}
	if err := pb.Unmarshal(reply.Header, res); err != nil {
		return nil, sys.E(opChange, sys.Corrupt, err)
	}
	return res, nil
}

// Tokens returns the join tokens that the cluster keeps, without their secrets.
func (c *Client) Tokens(ctx context.Context) ([]*clusterpb.Token, error) {
	reply, err := c.CallLeader(ctx, MethodTokens, nil, nil)
	if err != nil {
		return nil, err
	}
	defer reply.Release()
	r := &clusterpb.TokensReply{}
	if err := pb.Unmarshal(reply.Payload, r); err != nil {
		return nil, sys.E(sys.Op("cluster.Tokens"), sys.Corrupt, err)
	}
	return r.Tokens, nil
}

// JoinKeys returns the hashes of the keys of members that joined with a token that
// a replica still knows.
func JoinKeys(g rsm.Group) (map[sys.NodeID][]byte, error) {
	keys := map[sys.NodeID][]byte{}
	err := g.ReadLocal(rsm.NSCluster, func(r rsm.Reader) error {
		tokens, err := readTokens(r)
		for _, t := range tokens {
			if t.Node != 0 {
				keys[sys.NodeID(t.Node)] = t.KeyHash
			}
		}
		return err
	})
	return keys, err
}

func (s *Service) serveTokens(ctx context.Context, req *wire.Request) (wire.Response, error) {
	r := &clusterpb.TokensReply{}
	err := s.Group.Read(ctx, rsm.NSCluster, func(rd rsm.Reader) (err error) {
		r.Tokens, err = readTokens(rd)
		return err
	})
	if err != nil {
		return LeaderHint(err)
	}
	for _, t := range r.Tokens {
		t.SecretHash = nil
	}
	return wire.Response{Payload: pb.Marshal(r)}, nil
}

// AddToken makes a join token that expires after life.
func (c *Client) AddToken(ctx context.Context, t auth.Token, life time.Duration, zone string) error {
	_, err := c.Change(ctx, &clusterpb.Command{Op: &clusterpb.Command_AddToken{AddToken: &clusterpb.AddToken{
		Id: t.ID, SecretHash: auth.SecretHash(t.Secret[:]), LifeNs: int64(life), Zone: zone}}})
	return err
}

// RemoveToken makes a join token useless.
func (c *Client) RemoveToken(ctx context.Context, id string) error {
	_, err := c.Change(ctx, &clusterpb.Command{Op: &clusterpb.Command_RemoveToken{RemoveToken: &clusterpb.RemoveToken{Id: id}}})
	return err
}

// RemoveMember takes a node out of the map. It must hold no placement group.
func (c *Client) RemoveMember(ctx context.Context, id sys.NodeID) error {
	_, err := c.Change(ctx, &clusterpb.Command{Op: &clusterpb.Command_RemoveMember{RemoveMember: &clusterpb.RemoveMember{Id: uint64(id)}}})
	return err
}

// SetState says what a member is to the cluster.
func (c *Client) SetState(ctx context.Context, id sys.NodeID, state clusterpb.State) error {
	_, err := c.Change(ctx, &clusterpb.Command{Op: &clusterpb.Command_SetState{SetState: &clusterpb.SetState{Id: uint64(id), State: state}}})
	return err
}

// Announce tells the cluster where this node is, when the newest map known says
// something else; told says that it was so, and that the cluster knows now.
func (c *Client) Announce(ctx context.Context, at *clusterpb.SetAddr) (told bool, err error) {
	at = news(member(c.Map(), at.Id), at)
	if at == nil {
		return false, nil
	}
	_, err = c.Change(ctx, &clusterpb.Command{Op: &clusterpb.Command_SetAddr{SetAddr: at}})
	return err == nil, err
}

// news returns what of at the map does not say of a member, nil when that is
// nothing. A weight that is off by no more than a tenth is left: the size of
// some file systems is never the same twice.
func news(x *clusterpb.Member, at *clusterpb.SetAddr) *clusterpb.SetAddr {
	if x == nil {
		return nil
	}
	n := &clusterpb.SetAddr{Id: at.Id, Addr: at.Addr, Zone: at.Zone, Weight: at.Weight}
	if off := max(x.Weight, at.Weight) - min(x.Weight, at.Weight); off*10 <= x.Weight {
		n.Weight = 0
	}
	if !differs(x, n) {
		return nil
	}
	return n
}

// Void reports whether a token came too often with a wrong secret.
func Void(t *clusterpb.Token) bool { return t.Wrong >= wrongMax }
