package proc

import (
	"strings"
	"testing"

	"github.com/koinon/koinon/internal/proc/procpb"
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
