package meta

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/sys"
)

func TestOrdered(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	var o ordered[int, int]
	model := map[int]int{}
	for i := range 20_000 {
		k := r.IntN(300)
		if r.IntN(3) > 0 {
			o.set(k, i)
			model[k] = i
		} else {
			o.delete(k)
			delete(model, k)
		}
		if i%100 != 0 {
			continue
		}
		from, last, n := r.IntN(300), -1, 0
		o.scan(from, func(k, v int) bool {
			if k < from || k <= last || model[k] != v {
				t.Fatalf("scan from %d: expected %d above %d, found %d", from, model[k], last, v)
			}
			last = k
			n++
			return true
		})
		want := 0
		for k := range model {
			if k >= from {
				want++
			}
		}
		if n != want || len(o.keys) > 2*len(o.rows)+64 {
			t.Fatalf("expected %d rows and few dead keys, found %d and %d keys", want, n, len(o.keys))
		}
	}
}

func TestFailure(t *testing.T) {
	cause := errors.New("cause")
	for _, err := range []error{
		sys.E(sys.Op("meta.X"), sys.NotExist, sys.Subject("a"), cause),
		sys.E(sys.Op("meta.X"), sys.Stale),
		sys.E(sys.Exist, sys.E(sys.NotDir, "inner")),
	} {
		sent := &metapb.Failure{}
		if merr := pb.Unmarshal(pb.Marshal(FailureOf(err)), sent); merr != nil {
			t.Fatalf("%v: expected it to encode, found %v", err, merr)
		}
		if back := sent.Err(); back.Error() != err.Error() || sys.KindOf(back) != sys.KindOf(err) {
			t.Fatalf("expected %v, found %v", err, back)
		}
	}
	if f := FailureOf(cause); sys.Kind(f.Kind) != sys.Other || f.Cause != "cause" {
		t.Fatalf("expected the cause, found %v", f)
	}
	odd, back := FailureOf(sys.E(sys.NotExist, sys.Subject("a\xff/\n"))), &metapb.Failure{}
	if err := proto.Unmarshal(pb.Marshal(odd), back); err != nil {
		t.Fatalf("a subject that is not UTF-8: %v", err)
	}
	if FailureOf(nil) != nil || (*metapb.Failure)(nil).Err() != nil {
		t.Fatal("expected nothing to stay nothing")
	}
}

func TestQuarantineName(t *testing.T) {
	for _, deadline := range []int64{0, 1, 1 << 62} {
		name := quarantineName(deadline, 77)
		d, ino, ok := parseQuarantineName(name)
		if !ok || d != deadline || ino != 77 {
			t.Fatalf("%s: expected %d and 77, found %d, %d, %v", name, deadline, d, ino, ok)
		}
	}
	for _, bad := range []string{"", "x", "0000000000000000-000000000000000g", "0000000000000000 0000000000000000"} {
		if _, _, ok := parseQuarantineName([]byte(bad)); ok {
			t.Fatalf("%q: expected it to be refused", bad)
		}
	}
	if later(5, 1<<62) != 5+1<<62 || later(1<<62, 1<<62+1<<61) <= 0 {
		t.Fatal("later: expected a sum that does not overflow")
	}
}

// Dead pieces are told once each, and only when no piece is left.
func TestDeadSlices(t *testing.T) {
	list := func(ids ...uint64) (l []*metapb.Slice) {
		for _, id := range ids {
			l = append(l, &metapb.Slice{Slice: id, Len: 1, SliceLen: 9})
		}
		return l
	}
	var dead []uint64
	for _, sl := range deadSlices(list(1, 2, 0, 2, 3, 1), list(3, 0, 4)) {
		dead = append(dead, sl.Slice)
	}
	if !slices.Equal(dead, []uint64{1, 2}) {
		t.Fatalf("expected 1 and 2, found %v", dead)
	}
}
