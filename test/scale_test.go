//go:build linux

package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// resident returns a process's memory in bytes (proc(5), statm).
func resident(t *testing.T, pid int) int64 {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		t.Fatal(err)
	}
	pages, err := strconv.ParseInt(strings.Fields(string(raw))[1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return pages * int64(os.Getpagesize())
}

// makeFiles makes small files in the tree, and ends the test when it cannot.
func (d *dev) makeFiles(files int) {
	t := d.t
	t.Helper()
	const workers = 16
	began := time.Now()
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := w; i < files; i += workers {
				dir := filepath.Join(d.mount, fmt.Sprintf("d%d", w), fmt.Sprintf("e%d", i/(workers*1000)))
				if i/workers%1000 == 0 {
					if err := os.MkdirAll(dir, 0o755); err != nil {
						t.Error(err)
						return
					}
				}
				if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("f%d", i)), []byte(fmt.Sprintf("file %d", i)), 0o644); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	t.Logf("%d files in %v", files, time.Since(began).Round(time.Second))
}

// TestManyFiles fills the tree with small files and looks at the memory of the
// nodes and at how long they take to come back. `make scale` does it with
// 200,000.
func TestManyFiles(t *testing.T) {
	files := int(setting(t, "KOINON_SCALE_FILES", 4000))
	d := up(t, 3)
	d.makeFiles(files)
	d.nodesMemory()
	for number := 1; number <= 3; number++ {
		d.kill(number)
		began := time.Now()
		d.restart(number)
		took := time.Since(began)
		t.Logf("node %d answers %v after its start", number, took.Round(time.Millisecond))
		if took > 3*time.Second {
			t.Errorf("node %d took %v to come back", number, took)
		}
	}
	d.leader()
	for _, n := range d.status().Nodes {
		t.Logf("node %d after the restart: %d MiB resident", n.Number, resident(t, n.PID)>>20)
	}
	d.fsck()
}
