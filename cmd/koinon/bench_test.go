//go:build linux && !client

package main

import (
	"os"
	"strings"
	"testing"
)

func TestBenchCommand(t *testing.T) {
	m := newMemTree(t)
	a, b, tree := t.TempDir(), t.TempDir(), localTree(t)
	small := []string{"--files", "20", "--large-size", "1MiB", "--random-ops", "10", "--warm", "--tree", tree, "--workers", "1,2"}
	out := m.ok(append([]string{"bench", a}, small...)...)
	for _, want := range []string{"create", "write-small-fsync", "rand-write-fsync", "copy-in", "p99", "target A " + a} {
		if !strings.Contains(out, want) {
			t.Errorf("the table lacks %q:\n%s", want, out)
		}
	}
	var rep struct {
		Machine struct{ Cores int }
		Results []struct {
			Test, Target string
			Workers      int
			Ops          int64
			P99          float64 `json:"p99_us"`
		}
		Comparisons []struct{ Ratio float64 }
	}
	decode(t, m.ok(append([]string{"bench", a, "--compare", b, "--only", "create,stat", "-o", "json"}, small...)...), &rep)
	if len(rep.Results) != 8 || len(rep.Comparisons) != 4 || rep.Results[0].Ops != 20 || rep.Results[0].P99 <= 0 || rep.Machine.Cores < 1 {
		t.Errorf("%+v", rep)
	}
	for _, dir := range []string{a, b} {
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("%s: %v, %v", dir, left, err)
		}
	}
	if out := m.ok("bench", "--list"); strings.Count(out, "\n") < 15 {
		t.Error(out)
	}
	m.fails(2, "an argument is missing", "bench")
	m.fails(2, "is not a size", "bench", a, "--small-size", "many")
	m.fails(1, "files: expected more than 0, found 0", "bench", a, "--files", "0")
	m.fails(1, `no test is called "swim"`, "bench", a, "--only", "swim")
	m.fails(1, "give the path of a mounted directory", "bench", a+"/none")
}
