//go:build linux

package agent

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/cockroachdb/pebble/v2"

	"github.com/koinon/koinon/commit"
	"github.com/koinon/koinon/internal/atomicfile"
	"github.com/koinon/koinon/internal/env/envfs"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/proc/procpb"
	"github.com/koinon/koinon/internal/sys"
)

// The rows of the store (docs/formats/agent.md). Numbers in keys and values are
// big-endian.
const (
	rowFormat = 'v' // nothing: version
	rowFence  = 'f' // nothing: fence, as in fenceFile
	rowExec   = 'e' // nothing: the executor's instance that the agent found last
	rowFloor  = 'l' // nothing: epoch, number
	rowTx     = 'x' // epoch, number: state, payload of Prepared
	rowTask   = 't' // job, index, epoch: Reservation
	rowRank   = 'r' // job, index, epoch, rank, kind: see below
)

// The kinds of rowRank.
const (
	rankUnborn = 'u' // Process: it was not started, and will not be
	rankFiles  = 'o' // inodes of stdout and stderr in the tree
	rankTaken  = 'd' // empty: the leader knows the end
)

const storeVersion = 1

// store keeps a node's word across crashes of the daemon, in one boot of the machine: no process outlives a boot, and
// nothing that was said about it is worth more. Methods may be called concurrently; what they write is there for the next
// daemon when they return (docs/decisions/0025-words-of-one-boot.md).
type store struct {
	db       *pebble.DB
	dir      string // of all boots
	executor string // what rowExec holds, or will
}

// saved is what a store holds.
type saved struct {
	fence uint64
	party commit.Recovered
	tasks []savedTask
}

type savedTask struct {
	res   *procpb.Reservation
	ranks map[uint32]*savedRank
}

type savedRank struct {
	unborn *procpb.Process
	files  [2]sys.Ino
	taken  bool
}

// storeMemory is the memory of a store's cache, and of what it has not written
// to tables yet, in bytes.
const storeMemory = 1 << 20

// fenceFile has the node's fence, which outlives a boot: text. It is ahead of rowFence when a crash came in between.
const fenceFile = "fence"

// openStore opens what dir holds of a boot, and drops what it holds of others, but for the fence.
func openStore(dir, boot string, log *slog.Logger) (*store, *saved, error) {
	const op = sys.Op("agent.openStore")
	path, err := ofBoot(dir, boot)
	if err != nil {
		return nil, nil, sys.E(op, sys.Subject(dir), err)
	}
	db, err := pebble.Open(path, &pebble.Options{FS: envfs.Unsynced(envfs.Disk), FormatMajorVersion: pebble.FormatNewest, Logger: storeLogger{log},
		CacheSize: storeMemory, MemTableSize: storeMemory})
	if err != nil {
		return nil, nil, sys.E(op, sys.Subject(path), fmt.Errorf("%w; where this does not go away, as after the file system had died, remove this directory: what ran here then counts as lost", err))
	}
	s := &store{db: db, dir: dir}
	was, err := s.load()
	if err == nil {
		was, err = s.catchUp(was)
	}
	if err != nil {
		_ = db.Close() // the first error tells more
		return nil, nil, sys.E(op, sys.Subject(path), err)
	}
	return s, was, nil
}

// catchUp makes what was found in the rows that of the fence's file: nothing, if that is a higher one.
func (s *store) catchUp(was *saved) (*saved, error) {
	text, err := os.ReadFile(filepath.Join(s.dir, fenceFile))
	if errors.Is(err, fs.ErrNotExist) { // of a version that did not write it
		return was, s.keepFence(was.fence)
	} else if err != nil {
		return nil, err
	}
	fence, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return nil, sys.E(sys.Corrupt, sys.Subject(filepath.Join(s.dir, fenceFile)), err)
	}
	if fence <= was.fence {
		return was, nil
	}
	return &saved{fence: fence}, s.reset(fence)
}

// ofBoot returns the directory in dir of a boot, and removes those of others.
func ofBoot(dir, boot string) (string, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return dir, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return dir, err
	}
	path := filepath.Join(dir, boot)
	for _, e := range entries {
		name := filepath.Join(dir, e.Name())
		switch {
		case e.Name() == boot || e.Name() == fenceFile:
		case !e.IsDir(): // of a version that had its rows here
			if err = os.MkdirAll(path, 0o700); err == nil {
				err = os.Rename(name, filepath.Join(path, e.Name()))
			}
		default:
			err = os.RemoveAll(name)
		}
		if err != nil {
			return dir, err
		}
	}
	return path, nil
}

func (s *store) close() error { return s.db.Close() }

// load reads everything. A new store is given its version.
func (s *store) load() (*saved, error) {
	was := &saved{}
	iter, err := s.db.NewIter(nil)
	if err != nil {
		return nil, err
	}
	tasks := map[taskKey]int{}
	version := uint64(0)
	for ok := iter.First(); ok && err == nil; ok = iter.Next() {
		k, v := iter.Key(), bytes.Clone(iter.Value())
		switch k[0] {
		case rowFormat:
			version = binary.BigEndian.Uint64(v)
		case rowFence:
			was.fence = binary.BigEndian.Uint64(v)
		case rowExec:
			s.executor = string(v)
		case rowFloor:
			was.party.Floor = readTx(v)
		case rowTx:
			was.party.Records = append(was.party.Records, commit.Change{Tx: readTx(k[1:]), State: commit.State(v[0]), Payload: v[1:]})
		case rowTask:
			res := &procpb.Reservation{}
			err = pb.Unmarshal(v, res)
			tasks[readTaskKey(k[1:])] = len(was.tasks)
			was.tasks = append(was.tasks, savedTask{res, map[uint32]*savedRank{}})
		}
	}
	for ok := iter.SeekGE([]byte{rowRank}); ok && err == nil && iter.Key()[0] == rowRank; ok = iter.Next() {
		// A word about a rank may come later than the fence that has dropped its task.
		if i, known := tasks[readTaskKey(iter.Key()[1:])]; known {
			err = was.tasks[i].load(iter.Key()[1+taskKeySize:], iter.Value())
		}
	}
	if cerr := iter.Close(); err == nil {
		err = cerr
	}
	if err == nil && version == 0 {
		return was, s.db.Set([]byte{rowFormat}, binary.BigEndian.AppendUint64(nil, storeVersion), pebble.Sync)
	}
	if err == nil && version != storeVersion {
		err = sys.E(sys.NotSupported, fmt.Sprintf("the format is version %d, this program knows %d: start the newer one again", version, storeVersion))
	}
	return was, err
}

// load takes in a row of a rank; k is its key from the rank on.
func (t *savedTask) load(k, v []byte) error {
	n := binary.BigEndian.Uint32(k)
	r := t.ranks[n]
	if r == nil {
		r = &savedRank{}
		t.ranks[n] = r
	}
	switch k[4] {
	case rankUnborn:
		r.unborn = &procpb.Process{}
		return pb.Unmarshal(v, r.unborn)
	case rankFiles:
		r.files = [2]sys.Ino{sys.Ino(binary.BigEndian.Uint64(v)), sys.Ino(binary.BigEndian.Uint64(v[8:]))}
	case rankTaken:
		r.taken = true
	}
	return nil
}

// apply makes the participant's changes durable, and with them the tasks that
// the committed ones become.
func (s *store) apply(floor commit.Tx, changes []commit.Change, started []*task) error {
	b := s.db.NewBatch()
	defer func() { _ = b.Close() }() // it only frees memory
	var err error
	set := func(k, v []byte) {
		if err == nil {
			err = b.Set(k, v, nil)
		}
	}
	if floor != (commit.Tx{}) {
		set([]byte{rowFloor}, appendTx(nil, floor))
	}
	for _, c := range changes {
		k := appendTx([]byte{rowTx}, c.Tx)
		if c.State != commit.Gone {
			set(k, append([]byte{byte(c.State)}, c.Payload...))
		} else if err == nil {
			err = b.Delete(k, nil)
		}
	}
	for _, t := range started {
		set(t.key.append([]byte{rowTask}), pb.Marshal(t.res))
	}
	if err != nil {
		return err
	}
	return b.Commit(pebble.Sync)
}

// setUnborn notes how a process ended that was never started.
func (s *store) setUnborn(p *process, end *procpb.Process) error {
	return s.db.Set(p.row(rankUnborn), pb.Marshal(end), pebble.Sync)
}

// setFiles notes which files of the tree are a process's.
func (s *store) setFiles(p *process, files [2]sys.Ino) error {
	v := binary.BigEndian.AppendUint64(nil, uint64(files[0]))
	return s.db.Set(p.row(rankFiles), binary.BigEndian.AppendUint64(v, uint64(files[1])), pebble.Sync)
}

// setTaken notes that the leader knows the ends of processes, and drops the
// tasks that are done thereby.
func (s *store) setTaken(taken []*process, done []*task) error {
	b := s.db.NewBatch()
	defer func() { _ = b.Close() }() // it only frees memory
	for _, p := range taken {
		if err := b.Set(p.row(rankTaken), nil, nil); err != nil {
			return err
		}
	}
	for _, t := range done {
		if err := b.Delete(t.key.append([]byte{rowTask}), nil); err != nil {
			return err
		}
		for _, p := range t.procs {
			for _, kind := range []byte{rankUnborn, rankFiles, rankTaken} {
				if err := b.Delete(p.row(kind), nil); err != nil {
					return err
				}
			}
		}
	}
	return b.Commit(pebble.Sync)
}

// setExecutor notes which instance of the executor the agent has found. It is
// called before everything else.
func (s *store) setExecutor(instance string) error {
	s.executor = instance
	return s.db.Set([]byte{rowExec}, []byte(instance), pebble.Sync)
}

func (s *store) keepFence(fence uint64) error {
	return atomicfile.WriteDurably(filepath.Join(s.dir, fenceFile), fmt.Appendln(nil, fence), 0o600)
}

// reset drops everything and takes a fence, which survives a crash of the machine, too.
func (s *store) reset(fence uint64) error {
	if err := s.keepFence(fence); err != nil {
		return err
	}
	b := s.db.NewBatch()
	defer func() { _ = b.Close() }() // it only frees memory
	if err := b.DeleteRange([]byte{0}, []byte{255}, nil); err != nil {
		return err
	}
	if err := b.Set([]byte{rowExec}, []byte(s.executor), nil); err != nil {
		return err
	}
	for k, v := range map[byte]uint64{rowFormat: storeVersion, rowFence: fence} {
		if err := b.Set([]byte{k}, binary.BigEndian.AppendUint64(nil, v), nil); err != nil {
			return err
		}
	}
	return b.Commit(pebble.Sync)
}

func appendTx(b []byte, tx commit.Tx) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, tx.Epoch), tx.Seq)
}

func readTx(b []byte) commit.Tx {
	return commit.Tx{Epoch: binary.BigEndian.Uint64(b), Seq: binary.BigEndian.Uint64(b[8:])}
}

// taskKey names a try of a task.
type taskKey struct {
	job          uint64
	index, epoch uint32
}

const taskKeySize = 16

func (k taskKey) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, k.job)
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(b, k.index), k.epoch)
}

func readTaskKey(b []byte) taskKey {
	return taskKey{binary.BigEndian.Uint64(b), binary.BigEndian.Uint32(b[8:]), binary.BigEndian.Uint32(b[12:])}
}

func (p *process) row(kind byte) []byte {
	return append(binary.BigEndian.AppendUint32(p.task.key.append([]byte{rowRank}), p.rank), kind)
}

// storeLogger passes Pebble's words on.
type storeLogger struct{ log *slog.Logger }

// Infof drops Pebble's chatter about flushes and compactions.
func (l storeLogger) Infof(string, ...any) {}

// Errorf logs an error of the store.
func (l storeLogger) Errorf(format string, args ...any) {
	l.log.Error("processes: " + fmt.Sprintf(format, args...))
}

// Fatalf panics: Pebble cannot go on.
func (l storeLogger) Fatalf(format string, args ...any) {
	panic("agent: the store failed: " + fmt.Sprintf(format, args...))
}
