package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/bits"
	"net"
	"os"
	"path/filepath"
	"runtime/metrics"
	"sync"
	"syscall"
	"time"

	"github.com/koinon/koinon/internal/auth"
	"github.com/koinon/koinon/internal/sys"
)

// arm is one replica of the library that is measured.
type arm interface {
	// Ready says whether the replica's disk is prepared and it knows a leader.
	Ready() bool
	// Leads says whether commands can be given to this replica.
	Leads() bool
	// Client begins a run of commands: what it returns proposes one, and
	// returns when it is durable on a majority and applied here. end ends the
	// run. name is the arm as the options name it.
	Client(ctx context.Context, name string) (propose func(cmd []byte) error, end func() error, err error)
	// Syncs is how often the log was made durable, by the store's own count.
	Syncs() uint64
	Close() error
}

// setup is what a replica's process is told first.
type setup struct {
	Arm   string
	ID    int
	Addrs []string // of replicas 1, 2 and 3
	Dir   string
	TLS   string // directory of the credentials
	Quiet bool
}

// request and reply are the lines of the conversation between the benchmark
// and a replica's process.
type request struct {
	Op    string // "status", "load" or "stop"
	Arm   string
	Depth int
	For   time.Duration
	Bytes int
}

type reply struct {
	Err    string `json:",omitempty"`
	Status status
	Load   load
}

type status struct {
	Ready, Leads bool
	Applied      uint64 // commands
	Digest       uint64 // of all of them, in order
	Syncs        uint64
	CPU          time.Duration // user and system, of the process
	Allocated    uint64        // bytes, ever
}

// ledger is the replicated state of the peers, and how every arm proves what
// it has applied.
type ledger struct {
	mu            sync.Mutex
	count, digest uint64
	rows          map[uint64][]byte
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// note takes a command into the count and the digest.
func (l *ledger) note(cmd []byte) uint64 {
	sum := uint64(crc32.Checksum(cmd, castagnoli))
	l.mu.Lock()
	defer l.mu.Unlock()
	l.count++
	l.digest = bits.RotateLeft64(l.digest^sum, 17) * 0x9e3779b97f4a7c15
	return l.count
}

// apply is note for a state in memory: the command is kept under its key.
func (l *ledger) apply(cmd []byte) uint64 {
	n := l.note(cmd)
	l.rows[keyOf(cmd)] = cmd
	return n
}

func newLedger() *ledger { return &ledger{rows: map[uint64][]byte{}} }

// keyRange is how many keys the commands write to.
const keyRange = 1 << 16

// A command begins with its key and a number that is unique within its load.
func keyOf(cmd []byte) uint64 { return binary.LittleEndian.Uint64(cmd) }

// serveReplica is the main function of a replica's process.
func serveReplica() error {
	in := bufio.NewReader(os.Stdin)
	var s setup
	if err := readLine(in, &s); err != nil {
		return err
	}
	file := os.NewFile(3, "listener")
	l, err := net.FileListener(file)
	if err != nil {
		return err
	}
	if err := file.Close(); err != nil {
		return err
	}
	creds, err := auth.LoadCredentials(filepath.Join(s.TLS, auth.CACertFile), filepath.Join(s.TLS, "node.crt"), filepath.Join(s.TLS, "node.key"))
	if err != nil {
		return err
	}
	led := newLedger()
	a, err := openArm(s, l, creds, led)
	if err != nil {
		return err
	}
	return errors.Join(converse(in, os.Stdout, a, led), a.Close())
}

func openArm(s setup, l net.Listener, creds *auth.Credentials, led *ledger) (arm, error) {
	switch s.Arm {
	case "koinon":
		return openKoinon(s, l, creds, led)
	case "hashicorp":
		return openHashicorp(s, l, creds, led)
	case "etcd":
		return openEtcd(s, l, creds, led)
	}
	return nil, fmt.Errorf("unknown library %q", s.Arm)
}

// converse answers requests until it is told to stop or the input ends.
func converse(in *bufio.Reader, out io.Writer, a arm, led *ledger) error {
	enc := json.NewEncoder(out)
	for {
		var req request
		if err := readLine(in, &req); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		var r reply
		var err error
		switch req.Op {
		case "status":
			r.Status, err = statusOf(a, led)
		case "load":
			r.Load, err = runArm(a, req)
		case "stop":
			return nil
		}
		if err != nil {
			r.Err = err.Error()
		}
		if err := enc.Encode(&r); err != nil {
			return err
		}
	}
}

// runArm drives a replica from within its own process.
func runArm(a arm, req request) (load, error) {
	propose, end, err := a.Client(context.Background(), req.Arm)
	if err != nil {
		return load{}, err
	}
	out, err := drive(req.Depth, req.Bytes, req.For, propose)
	return out, errors.Join(err, end())
}

func readLine(in *bufio.Reader, v any) error {
	line, err := in.ReadBytes('\n')
	if err != nil {
		return err
	}
	return json.Unmarshal(line, v)
}

func statusOf(a arm, led *ledger) (status, error) {
	u, err := usage()
	if err != nil {
		return status{}, err
	}
	led.mu.Lock()
	defer led.mu.Unlock()
	return status{Ready: a.Ready(), Leads: a.Leads(), Applied: led.count, Digest: led.digest, Syncs: a.Syncs(),
		CPU: u, Allocated: allocated()}, nil
}

// usage is the processor time that this process has used.
func usage() (time.Duration, error) {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0, err
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()), nil
}

func allocated() uint64 {
	s := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}

// nodeID is a replica's number as Koinon's certificates have it.
func nodeID(i int) sys.NodeID { return sys.NodeID(i) }
