package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// sourceTree makes a small tree and returns its place, files and directories
// below it.
func sourceTree(t *testing.T) (root string, files, dirs int) {
	t.Helper()
	root = t.TempDir()
	for i, path := range []string{"a.go", "b/c.go", "b/d/e.go", "b/empty.go", "z/y.go"} {
		full := filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(full, bytes.Repeat([]byte{byte(i)}, i*1000), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	big := bytes.Repeat([]byte("0123456789abcdef"), copyUnit/16+17)
	if err := os.WriteFile(filepath.Join(root, "b", "big"), big, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("a.go", filepath.Join(root, "link")); err != nil {
		t.Fatal(err)
	}
	return root, 6, 3
}

func smallOptions(t *testing.T) Options {
	tree, _, _ := sourceTree(t)
	return Options{
		Dirs: []string{t.TempDir()}, Workers: []int{1, 3}, Files: 50, SmallSize: 5000, LargeSize: 3<<20 + 5, RandomOps: 20,
		Duration: time.Minute, Rounds: 1, TreeFiles: 4000, Warm: true, Tree: tree, Command: []string{"koinon", "bench", "a b"},
	}
}

func mustBeEmpty(t *testing.T, dirs ...string) {
	t.Helper()
	for _, dir := range dirs {
		left, err := os.ReadDir(dir)
		if err != nil || len(left) != 0 {
			t.Errorf("%s should be empty again: %v, %v", dir, left, err)
		}
	}
}

func TestEveryTestCountsWhatItDid(t *testing.T) {
	opt := smallOptions(t)
	_, files, dirs := sourceTree(t)
	for _, shared := range []bool{false, true} {
		opt.Shared = shared
		rep, err := Run(t.Context(), opt)
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]int64{
			"create": 50, "stat": 50, "open": 50, "rename": 50, "unlink": 50,
			"write-small": 50, "read-small": 50, "write-small-fsync": 50,
			"rand-read": 20, "rand-write-fsync": 20,
			"copy-in": int64(files), "read-tree": int64(files), "walk": int64(files + dirs), "remove": int64(files + dirs),
		}
		seen := map[string]int{}
		for _, r := range rep.Results {
			seen[r.Test]++
			if n, ok := want[r.Test]; ok && r.Ops != n {
				t.Errorf("%s with %d workers: expected %d operations, found %d", r.Test, r.Workers, n, r.Ops)
			}
			if strings.HasPrefix(r.Test, "seq-") && r.Bytes != opt.LargeSize {
				t.Errorf("%s with %d workers: expected %d bytes, found %d", r.Test, r.Workers, opt.LargeSize, r.Bytes)
			}
			if r.Rate <= 0 || r.Seconds <= 0 || r.P50us <= 0 || r.P99us < r.P50us || r.P999us < r.P99us || r.MaxUs < r.P999us || r.Errors != 0 || r.Cold {
				t.Errorf("implausible: %+v", r)
			}
		}
		for _, name := range TestNames() {
			if seen[name] != 2 {
				t.Errorf("%s: expected a result for each of 2 numbers of workers, found %d", name, seen[name])
			}
			if Describe(name) == "" {
				t.Errorf("%s has no description", name)
			}
		}
		if !rep.Complete || rep.Machine.Cores < 1 || rep.Targets[0].FSType == "" || rep.Settings.TreeFiles != files {
			t.Errorf("facts are missing: %+v", rep)
		}
		mustBeEmpty(t, opt.Dirs...)
	}
}

func TestOnlyRunsWhatItNeeds(t *testing.T) {
	opt := smallOptions(t)
	opt.Only, opt.Workers = []string{"unlink", "rand-read"}, []int{2}
	var steps []string
	opt.Progress = func(p Progress) {
		if p.Elapsed == 0 {
			steps = append(steps, p.Test)
		}
	}
	rep, err := Run(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"create", "unlink", "seq-write", "rand-read"}; !slices.Equal(steps, want) {
		t.Errorf("expected the steps %v, found %v", want, steps)
	}
	if len(rep.Results) != 2 || rep.Results[0].Test != "unlink" || rep.Results[0].Ops != 50 || rep.Results[1].Test != "rand-read" {
		t.Errorf("results: %+v", rep.Results)
	}
}

func TestCompareAndJSON(t *testing.T) {
	opt := smallOptions(t)
	opt.Dirs = append(opt.Dirs, t.TempDir())
	opt.Only, opt.Workers, opt.Rounds = []string{"create", "seq-read"}, []int{1}, 2
	rep, err := Run(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(rep)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Command []string
		Machine struct{ Cores int }
		Targets []struct {
			Name   string
			FSType string `json:"fs_type"`
		}
		Results []struct {
			Test, Target, Unit string
			Ops                int64
			Rounds             []float64 `json:"round_rates"`
			P50                float64   `json:"p50_us"`
		}
		Comparisons []struct {
			Test               string
			Ratio              float64
			RatioMin, RatioMax float64
		}
	}
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	if len(got.Command) != 3 || got.Machine.Cores < 1 || len(got.Targets) != 2 || got.Targets[1].Name != "B" || got.Targets[0].FSType == "" {
		t.Errorf("head: %s", data)
	}
	if len(got.Results) != 4 || got.Results[0].Ops != 100 || len(got.Results[0].Rounds) != 2 || got.Results[2].Unit != "MiB/s" {
		t.Errorf("results: %s", data)
	}
	if len(got.Comparisons) != 2 || got.Comparisons[0].Ratio <= 0 {
		t.Errorf("comparisons: %s", data)
	}
	var table strings.Builder
	if err := rep.WriteTable(&table); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"koinon bench 'a b'", "A/B", "create", "seq-read", "target B"} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, table.String())
		}
	}
	mustBeEmpty(t, opt.Dirs...)
}

func TestCancelLeavesNothing(t *testing.T) {
	opt := smallOptions(t)
	opt.Files, opt.Only = 1<<20, []string{"create"}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	opt.Progress = func(p Progress) {
		if p.Ops > 0 {
			cancel()
		}
	}
	rep, err := Run(ctx, opt)
	if !errors.Is(err, context.Canceled) || rep == nil || rep.Complete {
		t.Errorf("expected a cancelled, partial run, found %v, %+v", err, rep)
	}
	mustBeEmpty(t, opt.Dirs...)
}

func TestDurationCutsATest(t *testing.T) {
	opt := smallOptions(t)
	opt.Files, opt.Duration, opt.Workers, opt.Only = 1<<22, 50*time.Millisecond, []int{2}, []string{"create", "rename", "unlink"}
	rep, err := Run(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rep.Results {
		if r.Ops == 0 || r.Ops >= 1<<22 || r.Errors != 0 {
			t.Errorf("%+v", r)
		}
	}
	mustBeEmpty(t, opt.Dirs...)
}

func TestFailuresAreCounted(t *testing.T) {
	opt := smallOptions(t)
	opt.Only, opt.Workers, opt.Files = []string{"stat", "open"}, []int{1}, 30
	dir := opt.Dirs[0]
	opt.Progress = func(p Progress) {
		if p.Test == "stat" && p.Elapsed == 0 { // somebody removes a file under our hands
			victims, err := filepath.Glob(filepath.Join(dir, "koinon-bench-*", "files", "w0", "f0-7"))
			if err != nil || len(victims) != 1 {
				t.Errorf("%v, %v", victims, err)
				return
			}
			if err := os.Remove(victims[0]); err != nil {
				t.Error(err)
			}
		}
	}
	rep, err := Run(t.Context(), opt)
	if !errors.Is(err, ErrFailed) || rep.Errors != 2 || !rep.Complete {
		t.Fatalf("expected 2 failed operations, found %v, %+v", err, rep)
	}
	if r := rep.Results[0]; r.Errors != 1 || r.Ops != 29 || len(r.Failures) != 1 || !strings.Contains(r.Failures[0], "f0-7") {
		t.Errorf("%+v", r)
	}
	mustBeEmpty(t, dir)
}

func TestWrongBytesAreNoticed(t *testing.T) {
	opt := smallOptions(t)
	opt.Only, opt.Workers = []string{"seq-read", "read-small", "read-tree"}, []int{1}
	dir := opt.Dirs[0]
	broken := map[string]string{"seq-read": "large/w0/l0-0", "read-small": "small/w0/s0-3", "read-tree": "tree/tree/z/y.go"}
	opt.Progress = func(p Progress) {
		path := broken[p.Test]
		if path == "" || p.Elapsed != 0 {
			return
		}
		at, err := filepath.Glob(filepath.Join(dir, "koinon-bench-*", path))
		if err != nil || len(at) != 1 {
			t.Errorf("%s: %v, %v", path, at, err)
			return
		}
		f, err := os.OpenFile(at[0], os.O_WRONLY, 0)
		if err != nil {
			t.Error(err)
			return
		}
		if _, err := f.WriteAt([]byte{0, 1}, 0); err != nil {
			t.Error(err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
	rep, err := Run(t.Context(), opt)
	if !errors.Is(err, ErrFailed) {
		t.Fatal(err)
	}
	for _, r := range rep.Results {
		if r.Errors != 1 {
			t.Errorf("%s: expected 1 error, found %d (%v)", r.Test, r.Errors, r.Failures)
		}
	}
}

func TestBadOptions(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		set  func(*Options)
		want string
	}{
		{func(o *Options) { o.Dirs = nil }, "one directory"},
		{func(o *Options) { o.Dirs = []string{filepath.Join(dir, "missing")} }, "mounted directory"},
		{func(o *Options) { o.Dirs = []string{file} }, "not a directory"},
		{func(o *Options) { o.Workers = []int{1, 0} }, "workers"},
		{func(o *Options) { o.Workers = nil }, "workers"},
		{func(o *Options) { o.Only = []string{"swim"} }, `"swim"`},
		{func(o *Options) { o.Files = -1 }, "files: expected more than 0, found -1"},
		{func(o *Options) { o.Files = 0 }, "files"},
		{func(o *Options) { o.RandomOps = 0 }, "random operations"},
		{func(o *Options) { o.Rounds = 0 }, "rounds"},
		{func(o *Options) { o.TreeFiles = 0 }, "tree files"},
		{func(o *Options) { o.Duration = -time.Second }, "duration: expected more than 0, found -1s"},
		{func(o *Options) { o.SmallSize = 0 }, "small size"},
		{func(o *Options) { o.SmallSize = 1 << 30 }, "small size"},
		{func(o *Options) { o.LargeSize = 0 }, "large size"},
		{func(o *Options) { o.LargeSize = 100 }, "large size"},
		{func(o *Options) { o.LargeSize = 1 << 60 }, "choose smaller sizes"},
		{func(o *Options) { o.Tree = filepath.Join(dir, "missing") }, "--tree"},
	} {
		opt := Defaults()
		opt.Dirs = []string{dir}
		c.set(&opt)
		if _, err := Run(t.Context(), opt); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: expected an error with %q, found %v", opt, c.want, err)
		}
	}
}

func TestHistogram(t *testing.T) {
	var h hist
	for i := range 100_000 {
		h.add(time.Duration(i) * time.Microsecond)
	}
	for _, c := range []struct {
		q    float64
		want time.Duration
	}{{0.5, 50 * time.Millisecond}, {0.99, 99 * time.Millisecond}, {0.999, 99900 * time.Microsecond}, {1, 100 * time.Millisecond}} {
		if got := h.quantile(c.q); got < c.want*98/100 || got > c.want*102/100 {
			t.Errorf("quantile %v: expected about %v, found %v", c.q, c.want, got)
		}
	}
	var empty hist
	if empty.quantile(0.5) != 0 || histBucket(-1) != 0 || histBucket(1<<62) != histBuckets-1 {
		t.Error("edges of the histogram")
	}
}

func TestParseSize(t *testing.T) {
	for in, want := range map[string]int64{"0": 0, "4096": 4096, "16KiB": 16 << 10, "16k": 16 << 10, "512M": 512 << 20, "1.5GiB": 3 << 29, "2 TB": 2 << 40, "7B": 7} {
		if got, err := ParseSize(in); err != nil || got != want {
			t.Errorf("%q: expected %d, found %d, %v", in, want, got, err)
		}
	}
	for _, in := range []string{"", "x", "-1", "K", "1e300"} {
		if got, err := ParseSize(in); err == nil {
			t.Errorf("%q: expected an error, found %d", in, got)
		}
	}
}
