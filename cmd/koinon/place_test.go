//go:build linux && !client

package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestRunWhereTheDirectoryIsGone needs it only for what is said relative to it.
func TestRunWhereTheDirectoryIsGone(t *testing.T) {
	j := newJobs(t)
	j.gone = errors.New("it is gone")
	for _, args := range [][]string{{"run", "-d", "--", "true"}, {"run", "-d", "-C", "sub", "--", "true"}, {"run", "-d", "-C", "koinon:/", "--out", "x", "--", "true"}} {
		if _, errOut, code := j.runs(args...); code != 125 || !strings.Contains(errOut, "it is gone") {
			t.Errorf("%q: %d, %q", args, code, errOut)
		}
	}
	if out, errOut, code := j.runs("run", "-d", "-C", "koinon:/", "--out", "koinon:/out", "--", "true"); code != 0 || out != "1\n" {
		t.Errorf("with whole paths: %d, %q, %q", code, out, errOut)
	}
}

// TestRunFollowsLinks of the tree in the paths that processes and outputs are to be in, as the kernel does in those of the machine.
func TestRunFollowsLinks(t *testing.T) {
	j := newJobs(t)
	j.tree.ok("mkdir", "-p", "/data/in")
	for target, name := range map[string]string{"data": "/link", "/link/in": "/absolute", "loop": "/loop"} {
		if err := j.tree.c.Symlink(t.Context(), target, name); err != nil {
			t.Fatal(err)
		}
	}
	for i, tc := range []struct{ dir, out, wantDir, wantOut string }{
		{"koinon:/link", "koinon:/link/x", "/data", "/data/x"},
		{"koinon:/absolute", "koinon:/absolute/{}", "/data/in", "/data/in/{}"},
		{"koinon:/data", "koinon:/link/{}/x", "/data", "/data/{}/x"},
		{"koinon:/", "koinon:/x", "/", "/x"},
	} {
		if _, errOut, code := j.runs("run", "-d", "-C", tc.dir, "--out", tc.out, "--array", "1-1", "--", "true"); code != 0 {
			t.Fatalf("%v: %s", tc, errOut)
		}
		if s := j.table.Spec(uint64(i + 1)); s.Dir != tc.wantDir || s.Out != tc.wantOut {
			t.Errorf("%v: in %s, outputs as %s", tc, s.Dir, s.Out)
		}
	}
	for _, flags := range [][]string{{"-C", "koinon:/loop"}, {"--out", "koinon:/loop/x"}} {
		if _, errOut, code := j.runs(append(append([]string{"run", "-d"}, flags...), "--", "true")...); code != 125 || !strings.Contains(errOut, "too many levels of symbolic links") {
			t.Errorf("%v: %d, %s", flags, code, errOut)
		}
	}
}

// TestAnswered does not wait for a file system that hangs when it has been asked to stop.
func TestAnswered(t *testing.T) {
	if v, err := answered(t.Context(), func() (int, error) { return 7, errors.ErrUnsupported }); v != 7 || !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("%d, %v", v, err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	hung := make(chan struct{})
	defer close(hung)
	cancel(&signalError{syscall.SIGTERM})
	if _, err := answered(ctx, func() (int, error) { <-hung; return 0, nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("found %v", err)
	}
}

// TestRunWherePathsLead says where a path outside of the tree leads.
func TestRunWherePathsLead(t *testing.T) {
	j := newJobs(t)
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err == nil {
		err = os.Symlink("/", filepath.Join(dir, "link"))
	}
	if err != nil {
		t.Fatal(err)
	}
	for arg, want := range map[string]string{filepath.Join(dir, "link"): "that leads to /, which is not in the cluster's tree", dir: "write koinon:" + dir} {
		if _, errOut, code := j.runs("run", "-C", arg, "--", "true"); code != 125 || !strings.Contains(errOut, want) {
			t.Errorf("-C %s: %d, %s", arg, code, errOut)
		}
	}
}
