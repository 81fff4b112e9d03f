//go:build linux

package test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// TestMountsAppend lets programs on two mounts append to one file, some of which
// open it for each record and some of which keep it open, while the leader dies:
// every record is there once, whole, and those of each program are in order.
func TestMountsAppend(t *testing.T) {
	d := up(t, 3)
	mounts := []string{d.mount, d.secondMount("mnt2")}
	const writers, records = 6, 150
	var wg sync.WaitGroup
	var written atomic.Int64
	half := make(chan struct{})
	for w := range writers {
		wg.Go(func() {
			log := &appender{path: filepath.Join(mounts[w%2], "log"), keep: w >= writers/2}
			for r := range records {
				if err := log.write(fmt.Sprintf("%d %d %s\n", w, r, strings.Repeat("-", r*r%5000))); err != nil {
					t.Errorf("writer %d, record %d: %v", w, r, err)
					return
				}
				if written.Add(1) == writers*records/2 {
					close(half)
				}
			}
			if err := log.close(); err != nil {
				t.Errorf("writer %d: %v", w, err)
			}
		})
	}
	<-half
	killed := d.leader()
	d.kill(killed)
	wg.Wait()
	d.restart(killed)
	for _, m := range mounts {
		raw, err := os.ReadFile(filepath.Join(m, "log"))
		if err != nil {
			t.Fatal(err)
		}
		var next [writers]int
		for line := range strings.Lines(string(raw)) {
			var w, r int
			if _, err := fmt.Sscanf(line, "%d %d ", &w, &r); err != nil || w >= writers || r != next[w] || !strings.HasSuffix(line, " "+strings.Repeat("-", r*r%5000)+"\n") {
				t.Fatalf("%s: %.60q (%d bytes) is out of place, %v", m, line, len(line), err)
			}
			next[w]++
		}
		for w, n := range next {
			if n != records {
				t.Errorf("%s: %d records of writer %d, expected %d", m, n, w, records)
			}
		}
	}
	d.fsck()
}

// appender appends to a file, which it keeps open or opens for each record.
type appender struct {
	path string
	keep bool
	f    *os.File
	n    int
}

func (a *appender) write(record string) (err error) {
	if a.f == nil {
		if a.f, err = os.OpenFile(a.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644); err != nil {
			return err
		}
	}
	_, err = a.f.WriteString(record)
	if a.n++; a.n%40 == 0 {
		err = errors.Join(err, a.f.Sync())
	}
	if !a.keep {
		err = errors.Join(err, a.close())
	}
	return err
}

func (a *appender) close() error {
	f := a.f
	a.f = nil
	if f == nil {
		return nil
	}
	return f.Close()
}
