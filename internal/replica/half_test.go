package replica_test

import (
	"testing"

	"github.com/koinon/koinon/internal/replica"
	"github.com/koinon/koinon/internal/sys"
)

// Of two voters, and of any even number, half may lose what they have: of every
// majority somebody is whole.

// TestOneOfTwoWiped returns, leader or not, with the other alone, which has all
// that was acknowledged.
func TestOneOfTwoWiped(t *testing.T) {
	rejoin := map[sys.NodeID]bool{}
	c := newCluster(t, 2, func(cfg *replica.Config) { cfg.Rejoin = rejoin[cfg.Self] })
	for range 50 {
		c.must(add("x"))
	}
	for round, victim := range []sys.NodeID{c.leader(), c.follower()} {
		c.wipe(rejoin, []sys.NodeID{victim})
		c.await("the wiped one to return", func() bool {
			return c.count(victim, "x") == 50+uint64(round) && c.group(victim).Status().Damaged == ""
		})
		if n := number(c.must(add("x"))); n != 51+uint64(round) {
			t.Fatalf("51 and more expected, found %d", n)
		}
	}
}

// TestOneOfTwoDamaged is repaired from the other, and remembers what it accepts
// before it is.
func TestOneOfTwoDamaged(t *testing.T) {
	c := newCluster(t, 2, nil)
	for range 100 {
		c.must(add("x"))
	}
	victim := c.leader()
	other := 3 - victim
	c.await("all at both", func() bool { return c.count(other, "x") == 100 })
	c.close(victim)
	c.close(other)
	poke(t, c.fs[victim], 8192)
	c.open(victim)
	if c.group(victim).Status().Damaged == "" {
		t.Fatal("a damaged log expected, found none")
	}
	c.open(other)
	c.must(add("x"))
	c.await("the repair", func() bool { return c.count(victim, "x") == 101 && c.group(victim).Status().Damaged == "" })
	c.close(other)
	c.crash(victim)
	c.open(other)
	c.open(victim)
	if n := number(c.must(add("x"))); n != 102 {
		t.Fatalf("102 expected, found %d", n)
	}
}

// TestTwoOfFourWiped return.
func TestTwoOfFourWiped(t *testing.T) {
	rejoin := map[sys.NodeID]bool{}
	c := newCluster(t, 4, func(cfg *replica.Config) { cfg.Rejoin = rejoin[cfg.Self] })
	for range 20 {
		c.must(add("x"))
	}
	victims := []sys.NodeID{c.leader(), c.follower()}
	c.wipe(rejoin, victims)
	for _, id := range victims {
		c.await("the wiped ones to return", func() bool { return c.count(id, "x") == 20 && c.group(id).Status().Damaged == "" })
	}
	c.must(add("x"))
}
