package proc

import (
	"encoding/binary"
	"fmt"

	"github.com/koinon/koinon/commit"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/proc/procpb"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
)

// The kinds of rows, the first byte of a key; docs/formats/proc.md. Numbers in
// keys are big endian, so that they sort.
const (
	rowJob     = 'j' // job -> Job
	rowSpec    = 'd' // job -> Spec without its items
	rowItems   = 'i' // job -> Spec with nothing but its items
	rowTask    = 't' // job, index -> Task
	rowActive  = 'a' // job -> nothing: jobs that have not ended
	rowRequest = 'u' // request -> job: submitted before
	rowEnded   = 'e' // time, job -> nothing: jobs that have
	rowNode    = 'n' // node -> Node
	rowOn      = 'o' // node, job, index -> nothing: tasks with a live process there
	rowLast    = 'l' // the last job's ID
	rowEpoch   = 'c' // the coordinator's epoch
	rowCommit  = 'k' // epoch, seq -> the parties of a commit, 8 bytes each
)

func key(kind byte, numbers ...uint64) []byte {
	k := append(make([]byte, 0, 1+8*len(numbers)), kind)
	for _, n := range numbers {
		k = binary.BigEndian.AppendUint64(k, n)
	}
	return k
}

// numbers are those of a key.
func numbers(key []byte) []uint64 {
	var out []uint64
	for b := key[1:]; len(b) >= 8; b = b[8:] {
		out = append(out, binary.BigEndian.Uint64(b))
	}
	return out
}

func number(raw []byte) uint64 {
	if len(raw) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(raw)
}

func decode(raw []byte, row pb.Message) {
	if err := pb.Unmarshal(raw, row); err != nil {
		panic(fmt.Sprintf("proc: expected a sound %T in the state, found %v", row, err))
	}
}

// load fills row from a key and says whether it is there. Trouble of the engine
// is an error.
func load(r rsm.Reader, k []byte, row pb.Message) (bool, error) {
	raw, err := r.Get(k)
	if err != nil || raw == nil {
		return false, err
	}
	decode(raw, row)
	return true, nil
}

// Drained says whether a node takes no new processes, as far as this replica knows.
func Drained(g rsm.Group, node sys.NodeID) (drained bool, err error) {
	err = g.ReadLocal(rsm.NSProc, func(r rsm.Reader) error {
		n := &procpb.Node{}
		_, err := load(r, key(rowNode, uint64(node)), n)
		drained = n.Draining
		return err
	})
	return drained, err
}

// loadTable reads the coordinator's table.
func loadTable(r rsm.Reader) (*commit.Table, error) {
	t := &commit.Table{}
	raw, err := r.Get([]byte{rowEpoch})
	if err != nil {
		return nil, err
	}
	t.Epoch = number(raw)
	err = r.Scan([]byte{rowCommit}, []byte{rowCommit + 1}, func(k, v []byte) bool {
		n := numbers(k)
		c := commit.Commit{Tx: commit.Tx{Epoch: n[0], Seq: n[1]}}
		for ; len(v) >= 8; v = v[8:] {
			c.Parties = append(c.Parties, commit.Party(binary.BigEndian.Uint64(v)))
		}
		t.Commits = append(t.Commits, c)
		return true
	})
	return t, err
}

// loadTasks reads a job's tasks, all or those with an index of at least from,
// until fn returns false.
func loadTasks(r rsm.Reader, job uint64, from uint32, fn func(t *procpb.Task) bool) error {
	return r.Scan(key(rowTask, job, uint64(from)), key(rowTask, job+1), func(_, v []byte) bool {
		t := &procpb.Task{}
		decode(v, t)
		return fn(t)
	})
}

// loadSpec reads a job's specification with its items.
func loadSpec(r rsm.Reader, job uint64) (*procpb.Spec, error) {
	s := &procpb.Spec{}
	if ok, err := load(r, key(rowSpec, job), s); err != nil || !ok {
		return nil, err
	}
	items := &procpb.Spec{}
	if _, err := load(r, key(rowItems, job), items); err != nil {
		return nil, err
	}
	s.Items, s.NearItems = items.Items, items.NearItems
	return s, nil
}

// lastJob is the highest ID that a job has had.
func lastJob(r rsm.Reader) (uint64, error) {
	raw, err := r.Get([]byte{rowLast})
	return number(raw), err
}
