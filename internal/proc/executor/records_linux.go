package executor

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/koinon/koinon/internal/daemon"
	"github.com/koinon/koinon/internal/sys"
)

// The records of a supervisor are a log (docs/formats/supervisor.md): what happened to which attempt, in order.
type recordKind string

const (
	recordBegin  recordKind = "begin"  // is about to be started
	recordRun    recordKind = "run"    // runs, as Process: an event
	recordEnd    recordKind = "end"    // has ended with Status: an event
	recordForget recordKind = "forget" // may be forgotten, or could not be started
	recordFence  recordKind = "fence"  // no attempt below Epoch starts
)

type record struct {
	Kind    recordKind
	ID      ID
	Seq     uint64          `json:",omitempty"` // of the event
	Process *daemon.Process `json:",omitempty"`
	At      time.Time       `json:",omitzero"` // of a begin: when
	Status  *Status         `json:",omitempty"`
	Epoch   uint64          `json:",omitempty"`
}

const (
	recordHeader = 8       // length and CRC32C of what follows, both little-endian uint32
	recordMax    = 1 << 16 // bytes
	// compactAbove is the size at which a log is written anew without what was forgotten, bytes.
	compactAbove = 4 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// records is the log. Methods may be called concurrently. After a failed write or sync all further ones fail: what is on
// disk is not known any more.
type records struct {
	path string

	mu      sync.Mutex // of the file's end
	f       *os.File
	size    int64
	written uint64 // records so far
	seq     uint64 // of the newest event
	err     error

	syncing sync.Mutex
	synced  uint64 // how many of written are on disk
}

// openRecords replays the log through apply, cutting a torn end.
func openRecords(path string, apply func(record) error) (*records, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	r := &records{path: path, f: f}
	if err := r.replay(apply); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return r, nil
}

func (r *records) replay(apply func(record) error) error {
	text, err := os.ReadFile(r.path)
	if err != nil {
		return err
	}
	for len(text) >= recordHeader {
		n := binary.LittleEndian.Uint32(text)
		if n == 0 || n > recordMax || int(n) > len(text)-recordHeader {
			break
		}
		body := text[recordHeader : recordHeader+n]
		if crc32.Checksum(body, castagnoli) != binary.LittleEndian.Uint32(text[4:]) {
			break
		}
		var rec record
		if err := json.Unmarshal(body, &rec); err != nil {
			return sys.E(sys.Corrupt, sys.Subject(r.path), err)
		}
		r.seq = max(r.seq, rec.Seq)
		if err := apply(rec); err != nil {
			return err
		}
		r.size += recordHeader + int64(n)
		text = text[recordHeader+n:]
	}
	// What follows was being written when the supervisor died, or was not synced when the file system did.
	if err := r.f.Truncate(r.size); err != nil {
		return err
	}
	if _, err := r.f.Seek(r.size, 0); err != nil {
		return err
	}
	return errors.Join(r.f.Sync(), syncDir(filepath.Dir(r.path)))
}

func encodeRecord(rec record) ([]byte, error) {
	body, err := json.Marshal(rec)
	if err != nil {
		return nil, err
	}
	if len(body) > recordMax {
		panic(fmt.Sprintf("executor: expected a record of at most %d bytes, found %d", recordMax, len(body)))
	}
	head := make([]byte, recordHeader, recordHeader+len(body))
	binary.LittleEndian.PutUint32(head, uint32(len(body)))
	binary.LittleEndian.PutUint32(head[4:], crc32.Checksum(body, castagnoli))
	return append(head, body...), nil
}

// append writes a record, which survives the supervisor but not the machine, and returns its number, for sync. An
// event gets the next sequence number, which is returned too.
func (r *records) append(rec record) (n, seq uint64, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return 0, 0, r.err
	}
	if rec.Kind == recordRun || rec.Kind == recordEnd {
		r.seq++
		rec.Seq = r.seq
	}
	text, err := encodeRecord(rec)
	if err == nil {
		_, err = r.f.Write(text)
	}
	if err != nil {
		r.err = sys.E(sys.Op("executor.record"), err)
		return 0, 0, r.err
	}
	r.size += int64(len(text))
	r.written++
	return r.written, rec.Seq, nil
}

// sync returns when the record with the given number is on disk. Records that arrive during a sync share the next.
func (r *records) sync(n uint64) error {
	r.syncing.Lock()
	defer r.syncing.Unlock()
	if r.synced >= n {
		return nil
	}
	r.mu.Lock()
	written, err := r.written, r.err
	r.mu.Unlock()
	if err != nil {
		return err
	}
	if err := unix.Fdatasync(int(r.f.Fd())); err != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.err = sys.E(sys.Op("executor.record"), fmt.Errorf("sync %s: %w", r.path, err))
		return r.err
	}
	r.synced = written
	return nil
}

// full reports whether it is time to compact.
func (r *records) full() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.size > compactAbove
}

// compact replaces the log by records that make the same state, events with their numbers. Meanwhile nothing may be
// appended that changes that state.
func (r *records) compact(live []record) error {
	r.syncing.Lock()
	defer r.syncing.Unlock()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return r.err
	}
	var text []byte
	for _, rec := range live {
		one, err := encodeRecord(rec)
		if err != nil {
			return err
		}
		text = append(text, one...)
	}
	f, err := os.OpenFile(r.path+".new", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Sync()); err != nil {
		return errors.Join(err, f.Close())
	}
	if err = errors.Join(os.Rename(r.path+".new", r.path), syncDir(filepath.Dir(r.path))); err != nil {
		r.err = err // which of the two is the log is not known
		return errors.Join(err, f.Close())
	}
	err = r.f.Close()
	r.f, r.size, r.synced = f, int64(len(text)), r.written
	return err
}

func (r *records) close() error { return r.f.Close() }

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
