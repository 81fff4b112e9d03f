package cluster

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/koinon/koinon/internal/cluster/clusterpb"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/wire"
)

// TestGate: one request of an address at a time, and pauses that double.
func TestGate(t *testing.T) {
	var g gate
	now := time.Unix(1000, 0)
	pass := func(host string, wrong bool) {
		t.Helper()
		leave, err := g.enter(host, now)
		if err != nil {
			t.Fatalf("%s: %v", host, err)
		}
		leave(wrong, now)
	}
	closed := func(host, words string) {
		t.Helper()
		if _, err := g.enter(host, now); !sys.Is(err, sys.Busy) || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v, expected busy that says %q", host, err, words)
		}
	}
	leave, err := g.enter("10.0.0.1", now)
	if err != nil {
		t.Fatal(err)
	}
	closed("10.0.0.1", "being answered")
	pass("10.0.0.2", false)
	leave(true, now)
	for _, wait := range []time.Duration{1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300} {
		closed("10.0.0.1", fmt.Sprintf("try again in %v", wait*time.Second))
		now = now.Add(wait*time.Second - 1)
		closed("10.0.0.1", "wrong token")
		now = now.Add(1)
		pass("10.0.0.1", true)
	}
	now = now.Add(time.Hour)
	pass("10.0.0.1", false) // who is right starts anew
	pass("10.0.0.1", true)
	closed("10.0.0.1", "try again in 1s")

	pass("fd00:1:2:3::1", true) // a machine has as many of these as it likes
	closed("fd00:1:2:3:ffff::9", "wrong token")
	pass("fd00:1:2:4::1", false)
	pass("::ffff:10.0.0.9", true)
	pass("::ffff:10.0.0.8", true)
}

// TestGateForgets: what is remembered is bounded, and room is made.
func TestGateForgets(t *testing.T) {
	var g gate
	now := time.Unix(1000, 0)
	for i := range gateSize {
		leave, err := g.enter(fmt.Sprintf("h%d", i), now)
		if err != nil {
			t.Fatal(err)
		}
		leave(true, now)
	}
	if _, err := g.enter("one more", now); !sys.Is(err, sys.Busy) {
		t.Errorf("one more: %v", err)
	}
	if _, err := g.enter("one more", now.Add(2*gateMin)); err != nil || len(g.peers) != 1 {
		t.Errorf("later: %v, %d remembered", err, len(g.peers))
	}
}

// TestWhoMayChangeWhat goes through the commands that come over the wire.
func TestWhoMayChangeWhat(t *testing.T) {
	client, n2 := wire.Identity{Cluster: "lab", Name: "alice"}, wire.Identity{Cluster: "lab", Node: 2}
	hash := make([]byte, 32)
	token := func(life time.Duration, hash []byte) *clusterpb.Command {
		return &clusterpb.Command{Op: &clusterpb.Command_AddToken{AddToken: &clusterpb.AddToken{Id: "a", SecretHash: hash, LifeNs: int64(life), Creator: "node n1"}}}
	}
	moves := func(addr, zone string) *clusterpb.Command {
		return &clusterpb.Command{Op: &clusterpb.Command_SetAddr{SetAddr: &clusterpb.SetAddr{Id: 2, Addr: addr, Zone: zone}}}
	}
	comes := &clusterpb.Command{Op: &clusterpb.Command_Admit{Admit: &clusterpb.Admit{Addr: "10.0.0.4:1"}}}
	for i, tc := range []struct {
		cmd  *clusterpb.Command
		peer wire.Identity
		kind sys.Kind
		ok   bool
	}{
		{token(time.Hour, hash), client, 0, true},
		{token(0, hash), client, sys.Invalid, false},
		{token(31*24*time.Hour, hash), client, sys.Invalid, false},
		{token(time.Hour, hash[1:]), client, sys.Invalid, false},
		{comes, client, sys.Permission, false},
		{comes, n2, 0, true},
		{moves("10.0.0.2:1", ""), n2, 0, true},
		{moves("10.0.0.2:1", ""), client, sys.Permission, false},
		{moves("10.0.0.2:1", ""), wire.Identity{Node: 3}, sys.Permission, false},
		{moves("0.0.0.0:1", ""), n2, sys.Invalid, false},
		{moves("10.0.0.2", ""), n2, sys.Invalid, false},
		{moves(":7400", ""), n2, sys.Invalid, false},
		{moves("10.0.0.2:0", ""), n2, sys.Invalid, false},
		{moves("10.0.0.2:1", strings.Repeat("z", 65)), n2, sys.Invalid, false},
		{&clusterpb.Command{Map: &clusterpb.Map{}}, n2, sys.Permission, false},
		{&clusterpb.Command{Op: &clusterpb.Command_SetState{SetState: &clusterpb.SetState{Id: 2, State: 9}}}, client, sys.Invalid, false},
		{&clusterpb.Command{Op: &clusterpb.Command_RemoveMember{RemoveMember: &clusterpb.RemoveMember{Id: 2}}}, client, 0, true},
	} {
		err := checkChange(tc.cmd, tc.peer)
		if tc.ok != (err == nil) || !tc.ok && !sys.Is(err, tc.kind) {
			t.Errorf("%d: %v, expected ok %v, %v", i, err, tc.ok, tc.kind)
		}
		if add := tc.cmd.GetAddToken(); add != nil && add.Creator != "client alice" {
			t.Errorf("%d: the creator is %q", i, add.Creator)
		}
	}
}

// TestEveryRefusalHasWords: nobody sees a bare number.
func TestEveryRefusalHasWords(t *testing.T) {
	for code := range clusterpb.Refusal_name {
		if code == 0 {
			continue
		}
		err := refused(&clusterpb.Command{}, &clusterpb.Result{Refusal: clusterpb.Refusal(code)})
		if err == nil || sys.Is(err, sys.NotSupported) || sys.Is(err, sys.Other) {
			t.Errorf("%v: %v", clusterpb.Refusal(code), err)
		}
	}
}
