package proc

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/proc/procpb"
)

// A page of a listing holds what one answer may, and the next one goes on
// behind it.
func TestListPages(t *testing.T) {
	x := newTable(t)
	const jobs = 12
	for range jobs {
		x.submit(specOf(func(s *procpb.Spec) { s.Argv = []string{"echo", strings.Repeat("x", 900_000)} }))
	}
	var got []uint64
	for below := uint64(0); ; {
		r, err := list(x.rows, &procpb.ListRequest{Below: below})
		if err != nil || len(r.Jobs) == 0 || pb.Size(r) > listBytes+SpecMax {
			t.Fatalf("a page of %d jobs and %d bytes, %v", len(r.Jobs), pb.Size(r), err)
		}
		for _, i := range r.Jobs {
			got = append(got, i.Job.Id)
		}
		if !r.More {
			break
		}
		below = got[len(got)-1]
	}
	want := make([]uint64, 0, jobs)
	for id := uint64(jobs); id > 0; id-- {
		want = append(want, id)
	}
	if !slices.Equal(got, want) {
		t.Errorf("listed %v", got)
	}
}

// Jobs are read together, and what a leader has in memory of those that are not over is what the rows say.
func TestListReadsTogether(t *testing.T) {
	x := newTable(t)
	for range 300 {
		x.submit(specOf())
	}
	gets := 0
	all, err := list(counting{x.rows, &gets}, &procpb.ListRequest{})
	if err != nil || len(all.Jobs) != 300 || all.More {
		t.Fatalf("%d jobs, more %v, %v", len(all.Jobs), all.More, err)
	}
	if gets > 10 {
		t.Errorf("300 jobs took %d reads of single rows", gets)
	}
	for id := uint64(1); id <= 300; id++ {
		if id%3 != 0 {
			x.must(&procpb.Command{Op: &procpb.Command_Kill{Kill: &procpb.Kill{Job: id, Signal: 9, By: "t"}}})
		}
	}
	m, err := loadModel(x.rows, 0)
	if err != nil {
		t.Fatal(err)
	}
	var open []*procpb.JobInfo
	for below := uint64(0); ; {
		page := m.list(&procpb.ListRequest{Below: below, Limit: 30, User: "ana"})
		open = append(open, page.Jobs...)
		if !page.More {
			break
		}
		below = open[len(open)-1].Job.Id
	}
	if len(open) != 100 || len(m.list(&procpb.ListRequest{User: "bob"}).Jobs) != 0 {
		t.Fatalf("%d jobs that are not over", len(open))
	}
	for _, i := range open {
		if want := all.Jobs[300-i.Job.Id]; !proto.Equal(i, want) {
			t.Errorf("in memory it is %v, in the rows %v", i, want)
		}
	}
}

// counting counts reads of single rows.
type counting struct {
	rows
	gets *int
}

func (c counting) Get(k []byte) ([]byte, error) {
	*c.gets++
	return c.rows.Get(k)
}
