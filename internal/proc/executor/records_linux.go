package executor

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"sync"
	"time"

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

// records is the log. It outlives the supervisor, and not the machine: nothing is synced. Methods may be called
// concurrently. After a failed write all further ones fail: what is in the file is not known any more.
type records struct {
	path string

	mu   sync.Mutex
	f    *os.File
	size int64
	seq  uint64 // of the newest event
	err  error
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
	// What follows was being written when the supervisor died, or was not on disk yet when the machine did.
	if err := r.f.Truncate(r.size); err != nil {
		return err
	}
	_, err = r.f.Seek(r.size, 0)
	return err
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

// append writes a record. An event gets the next sequence number, which is returned.
func (r *records) append(rec record) (seq uint64, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return 0, r.err
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
		return 0, r.err
	}
	r.size += int64(len(text))
	return rec.Seq, nil
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
	if _, err = f.Write(text); err == nil {
		err = os.Rename(r.path+".new", r.path)
	}
	if err != nil {
		return errors.Join(err, f.Close())
	}
	err = r.f.Close()
	r.f, r.size = f, int64(len(text))
	return err
}

func (r *records) close() error { return r.f.Close() }
