//go:build linux

package executor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The end of a process may be told while its output is already being emptied:
// no byte is lost by that, and none kept twice.
func TestDrainMeetsRest(t *testing.T) {
	const printed = "143\n"
	for range 300 {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Dir(spoolPath(dir, ID{}, Stdout.suffix())), 0o700); err != nil {
			t.Fatal(err)
		}
		s := newSpool(dir, ID{Job: 1, Epoch: 1}, Stdout, 0)
		if _, err := w.WriteString(printed); err != nil {
			t.Fatal(err)
		}
		s.draining = true
		end := make(chan struct{})
		go func() {
			defer close(end)
			for range 20 {
				_ = r.SetReadDeadline(time.Unix(1, 0)) // as drain does
			}
		}()
		s.copy(r)
		<-end
		out, err := os.ReadFile(s.path())
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if err != nil || string(out) != printed || s.state.Size != int64(len(printed)) {
			t.Fatalf("%d bytes are kept of %q: %q, %v", s.state.Size, printed, strings.TrimSpace(string(out)), err)
		}
	}
}
