//go:build linux

package test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/koinon/koinon"
)

// puts writes keys, each once, and remembers what was acknowledged.
type puts struct {
	mu    sync.Mutex
	acked map[string]time.Time // when the call began
	wg    sync.WaitGroup
	stop  context.CancelFunc
}

// startPuts has workers put keys under a prefix until the first error of each,
// or until finish.
func startPuts(t *testing.T, kv *koinon.KV, prefix string, workers int) *puts {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	p := &puts{acked: map[string]time.Time{}, stop: cancel}
	for w := range workers {
		p.wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				key := fmt.Sprintf("%s/%d/%d", prefix, w, n)
				began := time.Now()
				if _, err := kv.Put(ctx, key, []byte(key)); err != nil {
					if ctx.Err() == nil {
						t.Errorf("put %s: %v", key, err)
					}
					return
				}
				p.mu.Lock()
				p.acked[key] = began
				p.mu.Unlock()
			}
		})
	}
	return p
}

func (p *puts) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.acked)
}

func (p *puts) finish() {
	p.stop()
	p.wg.Wait()
}

// failSyncs lets every sync of a process fail from now on, and returns when the
// first one did. strace writes the time of each call.
func (d *dev) failSyncs(pid int) time.Time {
	t := d.t
	t.Helper()
	trace := d.besides("syncs")
	cmd := exec.Command("strace", "-f", "-qq", "-ttt", "-o", trace, "-e", "trace=fdatasync,fsync", "-e", "inject=fdatasync,fsync:error=EIO", "-p", itoa(pid))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // it ends with the process that it traces
		close(ended)
	}()
	t.Cleanup(func() {
		if err := cmd.Process.Signal(syscall.SIGINT); err == nil { // it lets the process go
			<-ended
		}
	})
	var first time.Time
	eventually(t, 20*time.Second, "a sync fails", func() bool {
		raw, err := os.ReadFile(trace)
		if err != nil {
			return false
		}
		for line := range strings.Lines(string(raw)) {
			if f := strings.Fields(line); len(f) > 2 && strings.Contains(line, "(INJECTED)") {
				secs, err := strconv.ParseFloat(f[1], 64)
				if err != nil {
					t.Fatalf("%v in %q", err, line)
				}
				first = time.UnixMicro(int64(secs * 1e6))
				return true
			}
		}
		return false
	})
	return first
}

// TestFailedSync: the disk of a node fails to sync. Its process says so and
// stops, and acknowledges nothing that began after. One node alone shows that
// best: whatever is acknowledged, that node has acknowledged. Of three, the
// others go on, and nobody sees an error.
func TestFailedSync(t *testing.T) {
	for _, nodes := range []int{1, 3} {
		t.Run(fmt.Sprintf("%d nodes", nodes), func(t *testing.T) {
			d := up(t, nodes)
			kv := d.kv()
			p := startPuts(t, kv, "sync", 4)
			eventually(t, 20*time.Second, "200 keys", func() bool { return p.count() > 200 })
			victim := d.leader()
			failed := d.failSyncs(d.node(victim).PID)
			eventually(t, 20*time.Second, "the node stops", func() bool { return d.node(victim).PID == 0 })
			raw, err := os.ReadFile(d.at("n"+itoa(victim), "log"))
			if err != nil {
				t.Fatal(err)
			}
			says(t, string(raw), "the replica stops", "input/output error")
			if nodes > 1 {
				n := p.count()
				eventually(t, 20*time.Second, "the others go on", func() bool { return p.count() > n+200 })
			}
			p.finish()
			d.restart(victim)
			for key, began := range p.acked {
				if nodes == 1 && began.After(failed) {
					t.Errorf("%s was put %v after a sync had failed, and acknowledged", key, began.Sub(failed))
				}
				if e, err := kv.Get(t.Context(), key, koinon.ReadOptions{}); err != nil || string(e.Value) != key {
					t.Fatalf("acknowledged and lost: %s: %v", key, err)
				}
			}
			if _, err := kv.Put(t.Context(), "after", nil); err != nil {
				t.Error(err)
			}
			t.Logf("%d keys acknowledged", len(p.acked))
		})
	}
}
