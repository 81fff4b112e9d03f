package cluster

import (
	"crypto/subtle"
	"fmt"
	"slices"
	"time"

	"github.com/koinon/koinon/internal/cluster/clusterpb"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/placement"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
)

const (
	tokenPrefix = "token/"
	// wrongMax is how many wrong secrets make a token void.
	wrongMax = 10
	// tokensMax bounds the rows of tokens.
	tokensMax = 1000
	// goneMax is how many of the members that were removed the map still names.
	goneMax = 500
	// tokenKept is how long the row of a token that has expired is kept, so
	// that people see what became of it.
	tokenKept = 7 * 24 * time.Hour
)

func tokenKey(id string) []byte { return []byte(tokenPrefix + id) }

// nextID is the ID that the next member gets. Maps of earlier versions do not
// say.
func nextID(m *clusterpb.Map) uint64 {
	next := max(m.GetNextId(), 1)
	for _, x := range m.GetMembers() {
		next = max(next, x.Id+1)
	}
	return next
}

func member(m *clusterpb.Map, id uint64) *clusterpb.Member {
	for _, x := range m.GetMembers() {
		if x.Id == id {
			return x
		}
	}
	return nil
}

// apply is the run of one command. What is refused writes nothing, but for the
// count of wrong secrets.
type apply struct {
	tx      rsm.Tx
	now     int64
	m       *clusterpb.Map // changed in place
	changed bool           // m is to be written
}

// load reads a row into m, and reports whether it exists.
func (a *apply) load(key []byte, m pb.Message) bool {
	raw, err := a.tx.Get(key)
	if err != nil {
		return false // the Tx keeps it, and the host stops
	}
	if err := pb.Unmarshal(raw, m); err != nil {
		panic(fmt.Sprintf("cluster: expected a %T in row %q, found %v", m, key, err))
	}
	return raw != nil
}

func (a *apply) run(cmd *clusterpb.Command, res *clusterpb.Result) clusterpb.Refusal {
	if cmd.Op != nil && a.m.Epoch == 0 {
		return clusterpb.Refusal_NO_CLUSTER
	}
	switch op := cmd.Op.(type) {
	case *clusterpb.Command_AddToken:
		return a.addToken(op.AddToken)
	case *clusterpb.Command_RemoveToken:
		return a.removeToken(op.RemoveToken.Id)
	case *clusterpb.Command_Admit:
		return a.admit(op.Admit, res)
	case *clusterpb.Command_SetAddr:
		return a.setAddr(op.SetAddr, res)
	case *clusterpb.Command_RemoveMember:
		return a.removeMember(op.RemoveMember.Id)
	case *clusterpb.Command_SetState:
		return a.setState(op.SetState)
	}
	if cmd.Map == nil || cmd.Expect != a.m.Epoch {
		return clusterpb.Refusal_STALE
	}
	next := nextID(a.m) // IDs that were given out stay so, whatever the new map says
	a.m, a.changed = cmd.Map, true
	a.m.Epoch = cmd.Expect
	a.m.NextId = max(next, nextID(a.m))
	return clusterpb.Refusal_NONE
}

func (a *apply) addToken(op *clusterpb.AddToken) clusterpb.Refusal {
	var old clusterpb.Token
	if a.load(tokenKey(op.Id), &old) {
		if slices.Equal(old.SecretHash, op.SecretHash) {
			return clusterpb.Refusal_NONE // the same command again
		}
		return clusterpb.Refusal_TOKEN_EXISTS
	}
	tokens, err := readTokens(a.tx)
	if err != nil {
		return clusterpb.Refusal_STALE // the Tx keeps it, and the host stops
	}
	past := slices.DeleteFunc(slices.Clone(tokens), func(t *clusterpb.Token) bool { return t.ExpiresNs+int64(tokenKept) >= a.now })
	if len(tokens)-len(past) >= tokensMax {
		return clusterpb.Refusal_TOO_MANY
	}
	for _, t := range past {
		a.tx.Delete(tokenKey(t.Id))
	}
	a.tx.Set(tokenKey(op.Id), pb.Marshal(&clusterpb.Token{Id: op.Id, SecretHash: op.SecretHash, CreatedNs: a.now,
		ExpiresNs: a.now + op.LifeNs, Creator: op.Creator, Zone: op.Zone}))
	return clusterpb.Refusal_NONE
}

func (a *apply) removeToken(id string) clusterpb.Refusal {
	if !a.load(tokenKey(id), &clusterpb.Token{}) {
		return clusterpb.Refusal_TOKEN_UNKNOWN
	}
	a.tx.Delete(tokenKey(id))
	return clusterpb.Refusal_NONE
}

func (a *apply) admit(op *clusterpb.Admit, res *clusterpb.Result) clusterpb.Refusal {
	var t clusterpb.Token
	switch {
	case !a.load(tokenKey(op.Token), &t):
		return clusterpb.Refusal_TOKEN_UNKNOWN
	case Void(&t):
		return clusterpb.Refusal_TOKEN_VOID
	case subtle.ConstantTimeCompare(t.SecretHash, op.SecretHash) == 0:
		t.Wrong++
		a.tx.Set(tokenKey(t.Id), pb.Marshal(&t))
		return clusterpb.Refusal_TOKEN_WRONG
	case t.Node != 0:
		res.Node = t.Node
		if !slices.Equal(t.KeyHash, op.KeyHash) {
			return clusterpb.Refusal_TOKEN_USED
		}
		if member(a.m, t.Node) == nil {
			return clusterpb.Refusal_MEMBER_REMOVED
		}
		// It did not get the answer, or has lost it. It may listen elsewhere now.
		return a.setAddr(&clusterpb.SetAddr{Id: t.Node, Addr: op.Addr, Zone: op.Zone, Weight: op.Weight}, res)
	case a.now >= t.ExpiresNs:
		return clusterpb.Refusal_TOKEN_EXPIRED
	}
	if id := a.takenBy(op.Addr, 0); id != 0 {
		res.Node = id
		return clusterpb.Refusal_ADDR_TAKEN
	}
	zone := op.Zone
	if zone == "" {
		zone = t.Zone
	}
	res.Node = nextID(a.m)
	a.m.NextId = res.Node + 1
	a.m.Members = append(a.m.Members, &clusterpb.Member{Id: res.Node, Addr: op.Addr, Zone: zone,
		Weight: clampWeight(op.Weight), State: clusterpb.State_JOINING, JoinedNs: a.now})
	a.changed = true
	t.Node, t.KeyHash, t.UsedNs = res.Node, op.KeyHash, a.now
	a.tx.Set(tokenKey(t.Id), pb.Marshal(&t))
	return clusterpb.Refusal_NONE
}

func clampWeight(w uint64) uint64 { return min(max(w, 1), placement.MaxWeight) }

// takenBy returns the member with an address other than id, 0 when none has it.
func (a *apply) takenBy(addr string, id uint64) uint64 {
	for _, x := range a.m.Members {
		if x.Addr == addr && x.Id != id {
			return x.Id
		}
	}
	return 0
}

// missing says why there is no member id.
func (a *apply) missing(id uint64) clusterpb.Refusal {
	if id < nextID(a.m) {
		return clusterpb.Refusal_MEMBER_REMOVED
	}
	return clusterpb.Refusal_MEMBER_UNKNOWN
}

func (a *apply) setAddr(op *clusterpb.SetAddr, res *clusterpb.Result) clusterpb.Refusal {
	x := member(a.m, op.Id)
	if x == nil {
		return a.missing(op.Id)
	}
	if id := a.takenBy(op.Addr, op.Id); id != 0 {
		res.Node = id
		return clusterpb.Refusal_ADDR_TAKEN
	}
	if !differs(x, op) {
		return clusterpb.Refusal_NONE
	}
	if x.Addr != op.Addr {
		a.newTable()
	}
	x.Addr, a.changed = op.Addr, true
	if op.Zone != "" {
		x.Zone = op.Zone
	}
	if op.Weight != 0 {
		x.Weight = clampWeight(op.Weight)
	}
	return clusterpb.Refusal_NONE
}

// newTable raises the placement's epoch, so that clients that look for a member
// at its old address are sent for the map.
func (a *apply) newTable() {
	table, err := placement.Unmarshal(a.m.Table)
	if err != nil {
		panic(fmt.Sprintf("cluster: expected a placement table in the map, found %v", err))
	}
	table.Epoch++
	a.m.Table = table.Marshal()
}

// differs says that a command would change a member.
func differs(x *clusterpb.Member, op *clusterpb.SetAddr) bool {
	return x.Addr != op.Addr || op.Zone != "" && x.Zone != op.Zone || op.Weight != 0 && x.Weight != clampWeight(op.Weight)
}

// removeMember takes a member out of the map. One that holds placement groups
// stays: the blocks there would have a copy less than people think.
func (a *apply) removeMember(id uint64) clusterpb.Refusal {
	x := member(a.m, id)
	if x == nil {
		return a.missing(id)
	}
	table, err := placement.Unmarshal(a.m.Table)
	if err != nil {
		panic(fmt.Sprintf("cluster: expected a placement table in the map, found %v", err))
	}
	if slices.Contains(table.Members(), sys.NodeID(id)) {
		return clusterpb.Refusal_MEMBER_HOLDS
	}
	a.m.NextId = nextID(a.m)
	a.m.Gone = append(a.m.Gone, &clusterpb.Gone{Id: id, JoinedNs: x.JoinedNs})
	a.m.Gone = a.m.Gone[max(0, len(a.m.Gone)-goneMax):]
	a.m.Members = slices.DeleteFunc(a.m.Members, func(x *clusterpb.Member) bool { return x.Id == id })
	a.changed = true
	return clusterpb.Refusal_NONE
}

func (a *apply) setState(op *clusterpb.SetState) clusterpb.Refusal {
	x := member(a.m, op.Id)
	if x == nil {
		return a.missing(op.Id)
	}
	if x.State != op.State {
		x.State, a.changed = op.State, true
	}
	return clusterpb.Refusal_NONE
}

// readTokens returns all tokens in the state, by ID.
func readTokens(r rsm.Reader) ([]*clusterpb.Token, error) {
	var out []*clusterpb.Token
	var bad error
	err := r.Scan([]byte(tokenPrefix), []byte("token0"), func(_, value []byte) bool { // '0' is what follows '/'
		t := &clusterpb.Token{}
		if bad = pb.Unmarshal(value, t); bad != nil {
			bad = sys.E(sys.Op("cluster.Tokens"), sys.Corrupt, bad)
		}
		out = append(out, t)
		return bad == nil
	})
	if err == nil {
		err = bad
	}
	return out, err
}
