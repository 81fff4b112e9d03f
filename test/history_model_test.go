//go:build linux

package test

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"
)

// action is what a client asked of one key.
type action struct {
	Kind  string `json:"kind"` // get, put, delete, swap (if the value is Old), change (if last changed at At)
	Key   string `json:"key"`
	Value string `json:"value,omitempty"` // written; no two actions of a history write the same
	Old   string `json:"old,omitempty"`
	At    uint64 `json:"at,omitempty"`
}

// What became of an action.
const (
	done     = "done"     // and the outcome tells what was found or made
	absent   = "absent"   // there is no such key
	mismatch = "mismatch" // the condition does not hold
	unknown  = "unknown"  // it takes effect at any later time, or never
	failed   = "failed"   // and certainly has no effect
)

// outcome is what the client was told.
type outcome struct {
	Is       string `json:"is"`
	Value    string `json:"found,omitempty"`
	Revision uint64 `json:"revision,omitempty"` // of the change made, or the last one found
	Created  uint64 `json:"created,omitempty"`
	Version  uint64 `json:"version,omitempty"`
	Why      string `json:"why,omitempty"` // the error, for people
}

// record is a line of a client's log: one when an action begins, one with the
// outcome when it ends. Times are of CLOCK_MONOTONIC, which all processes share.
type record struct {
	Client int      `json:"client"`
	Seq    int      `json:"seq"`
	Time   int64    `json:"ns"`
	Begin  *action  `json:"begin,omitempty"`
	End    *outcome `json:"end,omitempty"`
}

// readRecords reads what a client process wrote. The last line of one that was
// killed may be torn: that outcome is not known.
func readRecords(path string) (out []record, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() // it was only read
	in := bufio.NewReader(f)
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return out, nil
		}
		var r record
		if err := json.Unmarshal(line, &r); err != nil {
			return nil, fmt.Errorf("%s: %w: %q", path, err, line)
		}
		if r.Begin != nil || r.End != nil {
			out = append(out, r)
		}
	}
}

// operations makes porcupine's history of records. Actions of unknown outcome
// stay open to the end; what certainly had no effect is left out.
func operations(records []record) []porcupine.Operation {
	type id struct{ client, seq int }
	ends := map[id]record{}
	for _, r := range records {
		if r.End != nil {
			ends[id{r.Client, r.Seq}] = r
		}
	}
	var ops []porcupine.Operation
	for _, r := range records {
		if r.Begin == nil {
			continue
		}
		op := porcupine.Operation{ClientId: r.Client, Input: *r.Begin, Call: r.Time, Output: outcome{Is: unknown}, Return: math.MaxInt64}
		if end, ok := ends[id{r.Client, r.Seq}]; ok && end.End.Is != unknown {
			op.Output, op.Return = *end.End, end.Time
		}
		switch is := op.Output.(outcome).Is; {
		case is == failed, is == unknown && r.Begin.Kind == "get":
		default:
			ops = append(ops, op)
		}
	}
	// Values are unique, so a read tells the revision of the change that wrote
	// what it found, also when that one's own outcome is not known.
	found := map[string]uint64{}
	for _, op := range ops {
		if o := op.Output.(outcome); o.Is == done && op.Input.(action).Kind == "get" && o.Value != "" {
			found[o.Value] = max(found[o.Value], o.Revision)
		}
	}
	for i := range ops {
		if in := ops[i].Input.(action); ops[i].Output.(outcome).Is == unknown && found[in.Value] != 0 {
			ops[i].Output = outcome{Is: unknown, Revision: found[in.Value]}
		}
	}
	return ops
}

// keyState is one key. Where a change of unknown outcome was the last, its
// revision is not known until it is seen.
type keyState struct {
	there   bool
	value   string
	rev     uint64 // of the last change, 0 when it is not known or the key is not there
	created uint64 // 0 when it is not known
	version uint64 // changes since it was created
	last    uint64 // the newest revision that is known
}

// keyModel is what the keys promise, each for itself.
var keyModel = porcupine.Model{
	Partition: func(ops []porcupine.Operation) [][]porcupine.Operation {
		byKey := map[string][]porcupine.Operation{}
		var keys []string
		for _, op := range ops {
			key := op.Input.(action).Key
			if byKey[key] == nil {
				keys = append(keys, key)
			}
			byKey[key] = append(byKey[key], op)
		}
		var out [][]porcupine.Operation
		for _, key := range keys {
			out = append(out, byKey[key])
		}
		return out
	},
	Init: func() any { return keyState{} },
	Step: func(s, in, out any) (bool, any) {
		ok, next := s.(keyState).step(in.(action), out.(outcome))
		return ok, next
	},
	DescribeOperation: func(in, out any) string { return describe(in.(action), out.(outcome)) },
	DescribeState: func(s any) string {
		if k := s.(keyState); k.there {
			return fmt.Sprintf("%s @%d, version %d", k.value, k.rev, k.version)
		}
		return "absent"
	},
}

// step says whether an action can have this outcome in a state, and what the
// state is then.
func (s keyState) step(a action, o outcome) (bool, keyState) {
	if a.Kind == "get" {
		return s.seen(o)
	}
	holds := true
	switch a.Kind {
	case "delete":
		holds = s.there
	case "swap":
		holds = s.there && s.value == a.Old
	case "change":
		// One that is not known was not seen by anybody, so it is not At.
		holds = s.there && s.rev != 0 && s.rev == a.At || !s.there && a.At == 0
	}
	switch o.Is {
	case unknown:
		if !holds {
			return o.Revision == 0, s // what was seen has taken effect
		}
		return s.changed(a, o.Revision)
	case done:
		if !holds || o.Revision == 0 {
			return false, s
		}
		return s.changed(a, o.Revision)
	case absent:
		return !holds && !s.there && a.Kind == "delete", s
	case mismatch:
		if holds || o.Revision == 0 {
			return !holds && !s.there, s
		}
		return s.at(o.Revision)
	}
	return false, s
}

// seen is a read.
func (s keyState) seen(o outcome) (bool, keyState) {
	if o.Is == absent {
		return !s.there, s
	}
	if o.Is != done || o.Value != s.value || o.Version != s.version || o.Created > o.Revision ||
		(o.Created == o.Revision) != (o.Version == 1) || s.created != 0 && s.created != o.Created {
		return false, s
	}
	ok, next := s.at(o.Revision)
	next.created = o.Created
	return ok, next
}

// at is the state when its last change is found to have a revision.
func (s keyState) at(rev uint64) (bool, keyState) {
	if !s.there || s.rev != 0 && s.rev != rev || s.rev == 0 && rev <= s.last {
		return false, s
	}
	s.rev, s.last = rev, rev
	return true, s
}

// changed is the state after a change at a revision, 0 when it is not known.
func (s keyState) changed(a action, rev uint64) (bool, keyState) {
	if rev != 0 && rev <= s.last {
		return false, s
	}
	last := max(s.last, rev)
	switch {
	case a.Kind == "delete":
		return true, keyState{last: last}
	case s.there:
		return true, keyState{there: true, value: a.Value, rev: rev, created: s.created, version: s.version + 1, last: last}
	}
	return true, keyState{there: true, value: a.Value, rev: rev, created: rev, version: 1, last: last}
}

func describe(a action, o outcome) string {
	s := a.Kind + " " + a.Key
	switch a.Kind {
	case "put":
		s += " = " + a.Value
	case "swap":
		s += fmt.Sprintf(" = %s if %s", a.Value, a.Old)
	case "change":
		s += fmt.Sprintf(" = %s if @%d", a.Value, a.At)
	}
	s += " -> " + o.Is
	if o.Value != "" {
		s += " " + o.Value
	}
	if o.Revision != 0 {
		s += fmt.Sprintf(" @%d", o.Revision)
	}
	if o.Version != 0 {
		s += fmt.Sprintf(", version %d since @%d", o.Version, o.Created)
	}
	return s
}

// outOfOrder returns two changes, of whatever keys, whose revisions do not
// follow the order in which they were made; empty when there are none. There is
// one revision for the whole map, which no key's own history shows.
func outOfOrder(ops []porcupine.Operation) string {
	var changes []porcupine.Operation
	for _, op := range ops {
		if op.Output.(outcome).Is == done && op.Input.(action).Kind != "get" {
			changes = append(changes, op)
		}
	}
	revision := func(op porcupine.Operation) uint64 { return op.Output.(outcome).Revision }
	ended := slices.SortedFunc(slices.Values(changes), func(a, b porcupine.Operation) int { return cmp.Compare(a.Return, b.Return) })
	begun := slices.SortedFunc(slices.Values(changes), func(a, b porcupine.Operation) int { return cmp.Compare(a.Call, b.Call) })
	var newest porcupine.Operation // of those that ended before
	used := map[uint64]porcupine.Operation{}
	for _, op := range begun {
		for len(ended) > 0 && ended[0].Return < op.Call {
			if newest.Output == nil || revision(newest) < revision(ended[0]) {
				newest = ended[0]
			}
			ended = ended[1:]
		}
		first, twice := used[revision(op)]
		if newest.Output != nil && revision(newest) >= revision(op) {
			first, twice = newest, true
		}
		if twice {
			return describe(first.Input.(action), first.Output.(outcome)) + ", then " + describe(op.Input.(action), op.Output.(outcome))
		}
		used[revision(op)] = op
	}
	return ""
}

// checkTime bounds the search for an order of one history.
const checkTime = 30 * time.Second

// check looks for an order of the records that explains them. When there is
// none, the error names the files in dir that show the history, with notes.
func check(records []record, dir, name string, notes ...porcupine.Annotation) error {
	ops := operations(records)
	res, info := porcupine.CheckOperationsVerbose(keyModel, ops, checkTime)
	wrong := outOfOrder(ops)
	if res == porcupine.Ok && wrong == "" {
		return nil
	}
	info.AddAnnotations(notes)
	picture, raw := filepath.Join(dir, name+".html"), filepath.Join(dir, name+".jsonl")
	if err := porcupine.VisualizePath(keyModel, info, picture); err != nil {
		return err
	}
	f, err := os.Create(raw)
	if err != nil {
		return err
	}
	for _, r := range records {
		if err := json.NewEncoder(f).Encode(r); err != nil {
			return err
		}
	}
	if err := f.Close(); err != nil {
		return err
	}
	return fmt.Errorf("%d operations, is there an order that explains them: %s; revisions that went back: %q; see %s and %s", len(ops), res, wrong, picture, raw)
}
