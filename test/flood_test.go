//go:build linux

package test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestFloodFillsTheTree has a process print more than the tree can hold: it goes on, and its end is recorded with
// what happened to its output. Another one that writes to the full tree gets ENOSPC, and its end is recorded too.
func TestFloodFillsTheTree(t *testing.T) {
	d := up(t, 1)
	d.stop()
	d.onSmallDisk(1)
	d.start()
	turn := filepath.Join(t.TempDir(), "turn")
	writer := d.job("run", "-d", "-c", "0.5", "--", "sh", "-c",
		"while [ ! -e "+turn+" ]; do sleep 0.1; done; dd if=/dev/zero of=flood bs=1M count=2000 2>"+turn+".said; exit 3")
	flood := d.job("run", "-d", "-c", "0.5", "--", "sh", "-c", "yes koinon | head -c 1000000000; exit 7")

	if err := d.runCommand("wait", flood).Run(); code(err) != 7 {
		t.Errorf("the flood's exit code is %d, expected 7", code(err))
	}
	says(t, d.koinon("inspect", flood), "its output was cut", "no space left")
	for _, follow := range []string{"--", "-f"} {
		logs := d.runCommand("logs", follow, flood)
		var said bytes.Buffer
		logs.Stderr = &said
		if err := logs.Run(); code(err) != 1 {
			t.Errorf("logs of an output that was cut ends with %d, expected 1", code(err))
		}
		says(t, said.String(), "job "+flood, "its output was cut", "no space left")
	}
	if err := os.WriteFile(turn, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.runCommand("wait", writer).Run(); code(err) != 3 {
		t.Errorf("the writer's exit code is %d, expected 3", code(err))
	}
	attended := d.runCommand("run", "-c", "0.5", "--", "sh", "-c", "yes koinon | head -c 100000000")
	var told bytes.Buffer
	attended.Stderr = &told
	if err := attended.Run(); code(err) != 125 {
		t.Errorf("a run whose output was cut ends with %d, expected 125", code(err))
	}
	says(t, told.String(), "its output was cut", "no space left")
	said, err := os.ReadFile(turn + ".said")
	if err != nil || !bytes.Contains(said, []byte("No space left on device")) {
		t.Errorf("dd says %q, %v", said, err)
	}
	var jobs []struct {
		ID    json.Number `json:"id"`
		State string      `json:"state"`
	}
	if err := json.Unmarshal([]byte(d.koinon("ps", "-a", "-o", "json")), &jobs); err != nil || len(jobs) != 3 {
		t.Fatalf("%d jobs, %v", len(jobs), err)
	}
	for i, want := range []string{"exited", "failed", "failed"} { // the last one first
		if j := jobs[i]; j.State != want {
			t.Errorf("job %v is %s, expected %s", j.ID, j.State, want)
		}
	}
	// What it printed before is kept, whole lines of it.
	kept, err := os.ReadFile(filepath.Join(d.mount, ".koinon/proc", flood, "stdout"))
	if len(kept) < 16<<20 || !strings.HasPrefix(string(kept), "koinon\nkoinon\n") {
		t.Errorf("of the flood %d bytes are kept, %v", len(kept), err)
	}
	eventually(t, 30*time.Second, "the tree is sound", func() bool {
		_, err := d.try("fsck")
		return err == nil
	})
}

// job starts a job and returns its ID.
func (d *dev) job(args ...string) string {
	d.t.Helper()
	return strings.TrimSpace(d.koinon(args...))
}
