//go:build linux && !client

package main

import (
	"strings"
	"testing"

	"github.com/koinon/koinon/internal/proc/procpb"
)

func TestWait(t *testing.T) {
	j := newJobs(t)
	for range 3 {
		j.runs("run", "-d", "--", "work")
	}
	s := j.start(nothing, "wait", "1", "2", "3")
	j.table.Start(2, 0, 1)
	j.table.End(2, 0, 0, 3)
	j.table.Set(3, 0, procpb.State_CANCELLED, 0)
	j.table.Start(1, 0, 1)
	j.table.End(1, 0, 0, 0)
	s.ends(3, "", "koinon: job 3 was never run\n")
	if out, _, _ := j.runs("ps", "-a", "--limit", "1"); !strings.Contains(out, "cancelled  -     125 ") {
		t.Errorf("what was never run ended as wait says: %s", out)
	}
	if out, _, code := j.runs("wait", "1", "-o", "json"); code != 0 || !strings.Contains(out, `"state": "exited"`) {
		t.Errorf("json: %d, %s", code, out)
	}
	for arg, want := range map[string]string{"9": "job 9: there is no such job", "x": "a job's number is wanted", "": "an argument is missing"} {
		if _, errOut, code := j.runs(append([]string{"wait"}, strings.Fields(arg)...)...); code != 125 || !strings.Contains(errOut, want) {
			t.Errorf("wait %s: %d, %q", arg, code, errOut)
		}
	}
}

// What is waited for is what is told: a task of an array while others run, a process of a gang.
func TestWaitForAPart(t *testing.T) {
	j := newJobs(t)
	j.runs("run", "-d", "--array", "0-4", "--", "work")
	for i := range uint32(4) {
		j.table.Start(1, i, 1)
		j.table.End(1, i, 0, []uint32{10, 11, 126, 13}[i])
	}
	j.runs("run", "-d", "-n", "2", "--", "work")
	j.table.Start(2, 0, 1, 2)
	j.table.End(2, 0, 0, 0)
	j.runs("run", "-d", "-n", "2", "--array", "3-4", "--", "work")
	for i := range uint32(2) {
		j.table.Start(3, 3+i, 1, 2)
		j.table.End(3, 3+i, 0, i)
		j.table.End(3, 3+i, 1, 5+i)
	}
	for _, tc := range []struct {
		args, want string
		code       int
	}{
		{"1.1", "", 11}, {"1.3 1.2", "", 13}, {"2:0 1.0", "", 10}, {"2:0", "", 0},
		{"3.4:0", "", 1}, {"3.4", "koinon: job 3.4 failed with exit code 1, rank 0 on n1 first\n", 1}, {"3.3:1", "", 5},
		{"3:1", "koinon: 2 of 2 tasks did not succeed: job 3.3:1 failed with exit code 5\n", 5},
	} {
		if out, errOut, code := j.runs(append([]string{"wait"}, strings.Fields(tc.args)...)...); code != tc.code || out != "" || errOut != tc.want {
			t.Errorf("wait %s: %d, %q, %q; want %d, %q", tc.args, code, out, errOut, tc.code, tc.want)
		}
	}
	out, _, code := j.runs("wait", "-o", "json", "1.1")
	for _, want := range []string{`"part": "1.1"`, `"state": "failed"`, `"exit_code": 11`, `"total": 1,`} {
		if !strings.Contains(out, want) || code != 11 {
			t.Errorf("%s is not told, %d: %s", want, code, out)
		}
	}
	s := j.start(nothing, "wait", "2:1")
	j.table.Why(2, 0, 1, "work: command not found")
	j.table.End(2, 0, 1, 127)
	s.ends(127, "", "koinon: job 2:1 failed with exit code 127: work: command not found\n")
	if out, _, _ := j.runs("inspect", "2:1"); strings.Contains(out, "\n2:0 ") || !strings.Contains(out, "\n2:1 ") {
		t.Errorf("inspect 2:1 tells\n%s", out)
	}
}
