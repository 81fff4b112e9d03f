package proc

import (
	"strings"
	"testing"

	"github.com/koinon/koinon/internal/proc/procpb"
	"github.com/koinon/koinon/internal/sys"
)

// TestTooLittle: what would hardly start is refused, instead of standing in the
// table as running for ever.
func TestTooLittle(t *testing.T) {
	for _, c := range []struct {
		each *procpb.Resources
		want string
	}{
		{&procpb.Resources{CpuMilli: 9}, "0.01 CPUs at least"},
		{&procpb.Resources{Memory: 1<<20 - 1}, "1 MiB of memory at least"},
		{&procpb.Resources{CpuMilli: 10, Memory: 1 << 20}, ""},
		{&procpb.Resources{Memory: 1 << 20}, ""},
	} {
		err := Check(specOf(func(s *procpb.Spec) { s.Each = c.each }))
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: expected %q, found %v", c.each, c.want, err)
		}
	}
}

// TestTextOfOtherBytes: what JSON cannot hold is refused by name.
func TestTextOfOtherBytes(t *testing.T) {
	const bad = "bad\xff"
	for name, set := range map[string]func(*procpb.Spec){
		"argument":    func(s *procpb.Spec) { s.Argv = append(s.Argv, bad) },
		"variable":    func(s *procpb.Spec) { s.Env = []string{"A=" + bad} },
		"item":        func(s *procpb.Spec) { s.Array, s.Last, s.Items = true, 1, []string{"good", bad} },
		"name":        func(s *procpb.Spec) { s.Name = bad },
		"directory":   func(s *procpb.Spec) { s.Dir = "/" + bad },
		"outputs":     func(s *procpb.Spec) { s.Out = "/" + bad },
		"near":        func(s *procpb.Spec) { s.NearPath = "/" + bad },
		"label":       func(s *procpb.Spec) { s.Want = []*procpb.Label{{Key: bad, Value: "x"}} },
		"user's name": func(s *procpb.Spec) { s.User = &procpb.User{Name: bad} },
	} {
		if err := Check(specOf(set)); !sys.Is(err, sys.Invalid) || !strings.Contains(err.Error(), `bad\xff" is not UTF-8`) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestOutputsOfOneName: two items whose outputs would be one directory are refused by name, by the leader alone: logs hold such jobs.
func TestOutputsOfOneName(t *testing.T) {
	for _, c := range []struct {
		out, want string
		items     []string
	}{
		{"/oo/{}", `the outputs of "da/f" and "db/f" would both appear as /oo/f: `, []string{"x", "da/f", "db/f", "da/f"}},
		{"/oo/{}", "", []string{"da/f", "db/g"}},
		{"", "", []string{"da/f", "db/f"}},
	} {
		s := specOf(func(s *procpb.Spec) { s.Array, s.Last, s.Items, s.Out = true, uint32(len(c.items)-1), c.items, c.out })
		if err := Check(s); err != nil {
			t.Errorf("%q: the machine refuses: %v", c.items, err)
		}
		if err := checkNew(s); (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: expected %q, found %v", c.items, c.want, err)
		}
	}
}

// TestOutputsOfNoItem: {} stands for nothing in a job of one task, which logs may hold all the same.
func TestOutputsOfNoItem(t *testing.T) {
	s := specOf(func(s *procpb.Spec) { s.Out = "/oo/{}" })
	if err := Check(s); err != nil {
		t.Errorf("the machine refuses: %v", err)
	}
	if err := checkNew(s); err == nil || !strings.Contains(err.Error(), "{} stands for") {
		t.Errorf("found %v", err)
	}
}
