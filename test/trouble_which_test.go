//go:build linux

package test

import (
	"os"
	"strings"
	"testing"
)

// TestDevWithoutDir: without --dir the dev commands work on the cluster that
// the other commands speak to, and say so.
func TestDevWithoutDir(t *testing.T) {
	d := up(t, 1)
	usual := d.besides("state") // where they would look otherwise
	t.Setenv("XDG_STATE_HOME", usual)
	says(t, d.koinon("dev", "kill", "1"), "the cluster in "+d.dir+":", "killed node 1")
	says(t, d.koinon("dev", "status"), d.dir, "down")
	says(t, d.koinon("dev", "start", "1"), "the cluster in "+d.dir+":", "node 1 is up")
	d.leader()
	version, _, _ := strings.Cut(strings.TrimPrefix(d.koinon("--version"), "koinon version "), " ")
	says(t, d.koinon("node", "ls"), "VERSION", version)
	raw, err := os.ReadFile(d.at("n1", "log"))
	if err != nil {
		t.Fatal(err)
	}
	says(t, string(raw), "version=\""+version)
	says(t, d.koinon("dev", "up", "--detach"), "The cluster in "+d.dir+" is already running")
	says(t, d.koinon("dev", "stop"), "the cluster in "+d.dir+":", "stopping node 1")
	says(t, d.koinon("dev", "up", "--detach"), "the cluster in "+d.dir+":", "starting node 1")
	if _, err := os.Stat(usual); err == nil {
		t.Error("a second cluster was made")
	}
	says(t, d.koinon("dev", "reset", "--yes"), "deleted "+d.dir)
	if _, err := os.Stat(d.dir); err == nil {
		t.Error("dev reset left the directory")
	}
	d.start() // which the end of the test stops
}
