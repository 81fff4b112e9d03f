package node

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/koinon/koinon/internal/env"
	"github.com/koinon/koinon/internal/replica"
	"github.com/koinon/koinon/internal/replica/replicatest"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
)

// jumpy is a machine's clock whose time of day is set by hand; the time since
// boot goes on as it does.
type jumpy struct {
	env.System
	off atomic.Int64 // ns
}

func (c *jumpy) Wall() time.Time { return time.Now().Add(time.Duration(c.off.Load())) }

// stamps is a machine that answers with the time of each command.
type stamps struct{}

func (stamps) Apply(tx rsm.Tx, st rsm.Stamp, body []byte) ([]byte, any) {
	tx.Set(body, []byte{1})
	return nil, st.TimeNs
}

const nsStamps rsm.Namespace = 9

// TestWallClockJumps sets the time of day of the leaders back and forth: the
// stamps of commands never fall, also from one leader to the next, and the
// leadership does not depend on it.
func TestWallClockJumps(t *testing.T) {
	network := replicatest.NewNetwork(1)
	defer network.Close()
	var voters []replica.Peer
	for id := sys.NodeID(1); id <= 3; id++ {
		voters = append(voters, replica.Peer{ID: id})
	}
	clocks := make([]*jumpy, 3)
	hosts := make([]*replica.Host, 3)
	for i, v := range voters {
		clocks[i] = &jumpy{}
		h, err := replica.Open(replica.Config{
			Dir: "data", FS: vfs.NewMem(), Clock: clocks[i], Cluster: "jumpy", Self: v.ID, Voters: voters,
			Transport: network.Endpoint(v.ID), SegmentBytes: 1 << 20, ReserveBytes: -1, Seed: uint64(i) + 1,
		}, map[rsm.Namespace]rsm.Machine{nsStamps: stamps{}})
		if err != nil {
			t.Fatal(err)
		}
		hosts[i] = h
		defer func() {
			if err := h.Close(); err != nil {
				t.Error(err)
			}
		}()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	last, leader := int64(0), 0
	propose := func() int64 {
		t.Helper()
		for {
			_, local, err := hosts[leader].Group(0).Propose(ctx, rsm.Command{NS: nsStamps, Body: []byte("k")})
			if err == nil {
				now := local.(int64)
				if now < last {
					t.Fatalf("a command is stamped %v before the one before it", time.Duration(last-now))
				}
				last = now
				return now
			}
			if ctx.Err() != nil {
				t.Fatal(err)
			}
			if leader = (leader + 1) % 3; sys.Is(err, sys.NotLeader) {
				time.Sleep(time.Millisecond)
			}
		}
	}
	propose()
	elections := hosts[leader].Group(0).Status().Elections
	first := leader
	for _, off := range []time.Duration{time.Hour, -time.Hour, 24 * 365 * time.Hour, 0, -24 * time.Hour} {
		clocks[leader].off.Store(int64(off))
		for range 20 {
			propose()
		}
	}
	if now := hosts[leader].Group(0).Status().Elections; leader != first || now != elections {
		t.Errorf("the leader changed because the time of day did: %d to %d, %d elections", first+1, leader+1, now-elections)
	}
	// The next leader's clock is behind by a year and a day.
	if err := hosts[leader].Group(0).Transfer(ctx, voters[(leader+1)%3].ID); err != nil {
		t.Fatal(err)
	}
	for range 20 {
		propose()
	}
}
