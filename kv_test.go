package koinon

import (
	"errors"
	"maps"
	"testing"

	"github.com/koinon/koinon/internal/kv"
	"github.com/koinon/koinon/internal/kv/kvpb"
	"github.com/koinon/koinon/internal/sys"
)

// TestCompacted: whoever words the error finds what the cluster said.
func TestCompacted(t *testing.T) {
	said := sys.E(sys.Op("kv.Query"), sys.Stale, "revision 3 is compacted")
	err := kvError(&kv.CompactedError{Oldest: 5, Err: said})
	if c, ok := errors.AsType[*CompactedError](err); !ok || c.Oldest != 5 || !errors.Is(err, ErrCompacted) || !errors.Is(err, said) {
		t.Errorf("ErrCompacted at 5 expected, found %v", err)
	}
}

// TestMismatch tells keys from locks, also of one name.
func TestMismatch(t *testing.T) {
	conditions := func(cs ...Condition) (all []*kvpb.Compare) {
		for _, c := range cs {
			all = append(all, c.pb)
		}
		return all
	}
	state := func(key string, rev, fence uint64) *kvpb.KeyState {
		return &kvpb.KeyState{Key: []byte(key), ModRevision: rev, Fence: fence}
	}
	all := conditions(AtRevision("a", 1), StillLocked("l", 5), Absent("same"), StillLocked("same", 7), HasValue("z", nil))
	for _, tc := range []struct {
		found       []*kvpb.KeyState
		keys, locks map[string]uint64
		text        string
	}{
		{[]*kvpb.KeyState{state("a", 4, 0)}, map[string]uint64{"a": 4}, nil, `key "a" is not as expected: it was last changed at revision 4`},
		{[]*kvpb.KeyState{state("a", 0, 0)}, map[string]uint64{"a": 0}, nil, `key "a" is not as expected: it is not there`},
		{[]*kvpb.KeyState{state("l", 0, 0)}, nil, map[string]uint64{"l": 0}, `lock "l" is not as expected: nobody holds it`},
		{[]*kvpb.KeyState{state("l", 0, 6)}, nil, map[string]uint64{"l": 6}, `lock "l" is not as expected: it is held under the token 6`},
		{[]*kvpb.KeyState{state("same", 3, 0), state("same", 0, 9)}, map[string]uint64{"same": 3}, map[string]uint64{"same": 9}, `2 keys and locks are not as expected, key "same" among them`},
		{[]*kvpb.KeyState{state("same", 0, 9), state("z", 2, 0)}, map[string]uint64{"z": 2}, map[string]uint64{"same": 9}, `2 keys and locks are not as expected, key "z" among them`},
		{nil, nil, nil, ErrMismatch.Error()},
	} {
		e := mismatch(all, tc.found)
		if !maps.Equal(e.Found, tc.keys) || !maps.Equal(e.Locks, tc.locks) || e.Error() != tc.text || !errors.Is(e, ErrMismatch) {
			t.Errorf("%v: %v, %v, %q; expected %v, %v, %q", tc.found, e.Found, e.Locks, e, tc.keys, tc.locks, tc.text)
		}
	}
}
