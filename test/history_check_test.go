//go:build linux

package test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// story builds records by hand, all of one key.
type story struct {
	records []record
	seq     map[int]int
	open    map[int]outcome
}

func (s *story) add(client int, r record) *story {
	r.Client, r.Seq, r.Time = client, s.seq[client], int64(len(s.records)+1)
	s.records = append(s.records, r)
	return s
}

// begin begins an action, whose outcome comes with end.
func (s *story) begin(client int, a action, o outcome) *story {
	if s.seq == nil {
		s.seq, s.open = map[int]int{}, map[int]outcome{}
	}
	a.Key = "k"
	s.seq[client]++
	s.open[client] = o
	return s.add(client, record{Begin: &a})
}

func (s *story) end(client int) *story {
	o := s.open[client]
	return s.add(client, record{End: &o})
}

// then is an action that ends before the next begins.
func (s *story) then(client int, a action, o outcome) *story {
	return s.begin(client, a, o).end(client)
}

var (
	get     = action{Kind: "get"}
	remove  = action{Kind: "delete"}
	noIdea  = outcome{Is: unknown}
	nothing = outcome{Is: absent}
)

func put(value string) action               { return action{Kind: "put", Value: value} }
func swap(old, value string) action         { return action{Kind: "swap", Old: old, Value: value} }
func change(at uint64, value string) action { return action{Kind: "change", At: at, Value: value} }
func made(revision uint64) outcome          { return outcome{Is: done, Revision: revision} }
func differs(revision uint64) outcome       { return outcome{Is: mismatch, Revision: revision} }
func holding(value string, revision, created, version uint64) outcome {
	return outcome{Is: done, Value: value, Revision: revision, Created: created, Version: version}
}

// TestHistoryChecker tries the checker on histories of which the verdict is
// known.
func TestHistoryChecker(t *testing.T) {
	for name, s := range map[string]*story{
		"one after the other": new(story).then(1, get, nothing).then(1, put("a"), made(3)).then(2, get, holding("a", 3, 3, 1)).
			then(2, swap("a", "b"), made(4)).then(1, get, holding("b", 4, 3, 2)).then(1, remove, made(5)).then(2, remove, nothing).then(2, get, nothing),
		"a read beside a change sees the old value": new(story).then(1, put("a"), made(3)).
			begin(1, put("b"), made(4)).then(2, get, holding("a", 3, 3, 1)).end(1).then(2, get, holding("b", 4, 3, 2)),
		"a read beside a change sees the new value": new(story).then(1, put("a"), made(3)).
			begin(1, put("b"), made(4)).then(2, get, holding("b", 4, 3, 2)).end(1),
		"an unknown change takes effect late": new(story).then(1, put("a"), made(3)).then(1, put("b"), noIdea).
			then(2, get, holding("a", 3, 3, 1)).then(2, get, holding("b", 4, 3, 2)).then(2, change(4, "c"), made(5)),
		"an unknown change never takes effect": new(story).then(1, put("a"), made(3)).then(1, put("b"), noIdea).
			then(2, get, holding("a", 3, 3, 1)).then(2, put("c"), made(4)).then(2, get, holding("c", 4, 3, 2)),
		"an unknown change is overwritten unseen": new(story).then(1, put("a"), made(3)).then(1, put("b"), noIdea).
			then(2, put("c"), made(5)).then(2, get, holding("c", 5, 3, 3)),
		"an unknown change is seen by who finds another revision": new(story).then(1, put("a"), made(3)).then(1, put("b"), noIdea).
			then(2, change(3, "c"), differs(4)).then(2, change(4, "c"), made(5)),
		"a client dies":                 new(story).then(1, put("a"), made(3)).begin(1, remove, noIdea).then(2, get, nothing).then(2, change(0, "b"), made(5)),
		"a failed change has no effect": new(story).then(1, put("a"), made(3)).then(1, put("b"), outcome{Is: failed}).then(2, get, holding("a", 3, 3, 1)),
		"one of two conditions holds": new(story).then(1, put("a"), made(3)).
			begin(1, swap("a", "b"), made(4)).begin(2, swap("a", "c"), differs(4)).end(2).end(1),
	} {
		if err := check(s.records, t.TempDir(), "fine"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, s := range map[string]*story{
		"a stale read": new(story).then(1, put("a"), made(3)).then(1, put("b"), made(4)).then(2, get, holding("a", 3, 3, 1)),
		"a read goes back": new(story).then(1, put("a"), made(3)).begin(1, put("b"), made(4)).
			then(2, get, holding("b", 4, 3, 2)).then(3, get, holding("a", 3, 3, 1)).end(1),
		"a lost write":           new(story).then(1, put("a"), made(3)).then(2, get, nothing),
		"a lost overwrite":       new(story).then(1, put("a"), made(3)).then(1, put("b"), made(4)).then(2, put("c"), made(5)).then(2, get, holding("c", 5, 3, 2)),
		"a lost removal":         new(story).then(1, put("a"), made(3)).then(1, remove, made(4)).then(2, get, holding("a", 3, 3, 1)),
		"a swap applied twice":   new(story).then(1, put("a"), made(3)).then(1, swap("a", "b"), made(4)).then(2, swap("b", "a2"), made(5)).then(2, get, holding("b", 6, 3, 4)),
		"a put applied twice":    new(story).then(1, put("a"), made(3)).then(2, get, holding("a", 4, 3, 2)),
		"two conditions held":    new(story).then(1, put("a"), made(3)).begin(1, swap("a", "b"), made(4)).begin(2, swap("a", "c"), made(5)).end(1).end(2),
		"a condition held late":  new(story).then(1, put("a"), made(3)).then(1, put("b"), made(4)).then(2, change(3, "c"), made(5)),
		"a condition was missed": new(story).then(1, put("a"), made(3)).then(2, change(3, "b"), differs(3)),
		"a failed change is seen": new(story).then(1, put("a"), made(3)).then(1, put("b"), outcome{Is: failed}).
			then(2, get, holding("b", 4, 3, 2)),
		"an unknown change is undone": new(story).then(1, put("a"), made(3)).then(1, put("b"), noIdea).
			then(2, get, holding("b", 4, 3, 2)).then(2, get, holding("a", 3, 3, 1)),
		"an unknown change is applied twice": new(story).then(1, put("a"), made(3)).then(1, put("b"), noIdea).
			then(2, get, holding("b", 4, 3, 2)).then(2, put("c"), made(5)).then(2, get, holding("b", 6, 3, 4)),
		"a change is seen before it was asked for": new(story).then(2, get, holding("a", 3, 3, 1)).then(1, put("a"), made(3)),
		"revisions go back":                        new(story).then(1, put("a"), made(4)).then(2, put("b"), made(3)),
	} {
		dir := t.TempDir()
		err := check(s.records, dir, "wrong")
		if err == nil || !strings.Contains(err.Error(), "Illegal") {
			t.Errorf("%s is not found: %v", name, err)
			continue
		}
		if again, err := readRecords(filepath.Join(dir, "wrong.jsonl")); err != nil || check(again, dir, "again") == nil {
			t.Errorf("%s: the file written is of another history: %v", name, err)
		}
		if info, err := os.Stat(filepath.Join(dir, "wrong.html")); err != nil || info.Size() == 0 {
			t.Errorf("%s: no picture: %v", name, err)
		}
	}
	s := new(story).then(1, put("a"), made(5)).then(2, put("b"), made(4))
	s.records[2].Begin.Key = "other"
	if err := check(s.records, t.TempDir(), "two"); err == nil || !strings.Contains(err.Error(), "-> done @4") {
		t.Errorf("revisions that go back between keys are not found: %v", err)
	}
}
