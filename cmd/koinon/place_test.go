//go:build linux && !client

package main

import (
	"errors"
	"strings"
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
