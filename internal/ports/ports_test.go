package ports

import (
	"net"
	"os/exec"
	"sync"
	"testing"
	"time"
)

// TestFree: a port from which the kernel takes outgoing connections could be taken while its server is down.
func TestFree(t *testing.T) {
	l, ok := ephemeralLow()
	seen := map[int]bool{}
	for range 10 {
		found, err := Free(9)
		if err != nil || len(found) != 9 {
			t.Fatalf("found %v, %v", found, err)
		}
		for _, p := range found {
			if p <= low || p >= high || ok && l >= low+block && p >= l {
				t.Errorf("port %d is out of range, outgoing connections start at %d", p, l)
			}
			if seen[p] {
				t.Errorf("port %d was returned twice", p)
			}
			seen[p] = true
		}
	}
	if Check(pool.held[len(pool.held)-1].Addr().String()) == nil {
		t.Error("another process may have the same block")
	}
}

func TestTakenPort(t *testing.T) {
	found, err := Free(1)
	if err != nil {
		t.Fatal(err)
	}
	taken, err := net.Listen("tcp", Loopback(found[0]))
	if err != nil {
		t.Fatal(err)
	}
	if Check(taken.Addr().String()) == nil {
		t.Error("a port that is taken is free")
	}
	if err := taken.Close(); err != nil {
		t.Fatal(err)
	}
	if err := Check(Loopback(found[0])); err != nil {
		t.Errorf("a port that was given up: %v", err)
	}
}

// TestFreeBesideForks: a child has its parent's sockets until it execs, and what
// it has is not free yet.
func TestFreeBesideForks(t *testing.T) {
	stop := make(chan struct{})
	var forks sync.WaitGroup
	for range 4 {
		forks.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					_ = exec.Command("/nonexistent").Run() // fails after the fork
				}
			}
		})
	}
	defer forks.Wait()
	defer close(stop)
	brief := 0 // ports that were taken for a moment
	for range 1000 {
		found, err := Free(1)
		if err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("tcp", Loopback(found[0]))
		if err != nil {
			time.Sleep(300 * time.Millisecond) // longer than from any fork to its exec
			if Check(Loopback(found[0])) == nil {
				if brief++; brief > 2 { // by chance it is somebody else's, and then not often
					t.Fatalf("ports that are free: %v", err)
				}
			}
			continue
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
