package replica_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
)

// counterInput is an operation on a counter: an addition of 1, or a read.
type counterInput struct{ add bool }

// counter is the sequential meaning: an addition returns the new value.
var counter = porcupine.Model{
	Init: func() any { return uint64(0) },
	Step: func(state, input, output any) (bool, any) {
		n := state.(uint64)
		if input.(counterInput).add {
			return output.(uint64) == n+1, n + 1
		}
		return output.(uint64) == n, n
	},
	DescribeOperation: func(input, output any) string {
		if input.(counterInput).add {
			return fmt.Sprintf("add -> %d", output)
		}
		return fmt.Sprintf("read -> %d", output)
	},
}

// history collects operations.
type history struct {
	mu    sync.Mutex
	start time.Time
	ops   []porcupine.Operation
}

func (h *history) run(client int, in counterInput, op func() uint64) {
	call := time.Since(h.start)
	out := op()
	end := time.Since(h.start)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops = append(h.ops, porcupine.Operation{ClientId: client, Input: in, Call: int64(call), Output: out, Return: int64(end)})
}

// read reads the counter at whoever leads.
func (c *cluster) read(key string) uint64 {
	for n := 0; ; n++ {
		h := c.host(sys.NodeID(n%int(c.n.Load()) + 1))
		if h == nil {
			continue
		}
		var out uint64
		err := h.Group(0).Read(c.ctx(), nsTest, func(r rsm.Reader) error {
			v, err := r.Get([]byte(key))
			out = number(v)
			return err
		})
		if err == nil {
			return out
		}
		if n%int(c.n.Load()) == 0 {
			time.Sleep(time.Millisecond)
		}
	}
}

// TestHistoriesAreLinearizable records what callers saw while leaders were cut
// off and nodes crashed, and has porcupine find an order that explains it.
func TestHistoriesAreLinearizable(t *testing.T) {
	c := newCluster(t, 3, nil)
	c.leader()
	c.linear(func() {
		rng := rand.New(rand.NewPCG(5, 5))
		for range 6 {
			l := c.leader()
			if rng.IntN(2) == 0 {
				c.net.Isolate(l, true)
				time.Sleep(time.Duration(200+rng.IntN(100)) * time.Millisecond)
				c.net.Isolate(l, false)
			} else {
				c.crash(l)
				c.open(l)
			}
		}
	})
}

// TestHistoriesAreLinearizableWhileMembersChange does the same while a window
// of three voters moves around five nodes.
func TestHistoriesAreLinearizableWhileMembersChange(t *testing.T) {
	c := newCluster(t, 3, nil)
	all := ids(1, 2, 3, c.join(), c.join())
	c.change(all[:3], all[3:])
	c.linear(func() {
		rng := rand.New(rand.NewPCG(6, 6))
		for round := range 6 {
			var voters []sys.NodeID
			for i := range 3 {
				voters = append(voters, all[(round+1+i)%5])
			}
			slices.Sort(voters)
			learners := slices.DeleteFunc(slices.Clone(all), func(id sys.NodeID) bool { return slices.Contains(voters, id) })
			done := make(chan error, 1)
			ctx := c.ctx()
			go func() { done <- c.tryChange(ctx, voters, learners) }()
			if l := c.leader(); rng.IntN(2) == 0 {
				c.net.Isolate(l, true)
				time.Sleep(time.Duration(200+rng.IntN(100)) * time.Millisecond)
				c.net.Isolate(l, false)
			} else {
				c.crash(l)
				c.open(l)
			}
			if err := <-done; err != nil {
				t.Errorf("change to %v: %v", voters, err)
				return
			}
		}
	})
}

// linear runs callers while trouble runs, and checks what they saw.
func (c *cluster) linear(trouble func()) {
	t := c.t
	t.Helper()
	h := &history{start: time.Now()}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for client := range 4 {
		session, err := c.openSession(fmt.Sprint(client))
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			for seq := uint64(1); ; seq++ {
				select {
				case <-stop:
					return
				default:
				}
				h.run(client, counterInput{add: true}, func() uint64 {
					out, err := c.do(c.ctx(), rsm.Command{Session: session, Seq: seq, Ack: seq - 1, NS: nsTest, Body: add("x")})
					if err != nil {
						t.Errorf("add: %v", err)
					}
					return number(out)
				})
				h.run(client, counterInput{}, func() uint64 { return c.read("x") })
			}
		})
	}
	trouble()
	close(stop)
	wg.Wait()
	if res := porcupine.CheckOperationsTimeout(counter, h.ops, 20*time.Second); res != porcupine.Ok {
		t.Fatalf("a linearizable history of %d operations expected, found %v", len(h.ops), res)
	}
	t.Logf("%d operations", len(h.ops))
}
