package executor

import (
	"errors"
	"syscall"
	"time"

	"github.com/koinon/koinon/internal/sys"
)

// The wire between the two halves is HTTP with JSON over a unix socket (docs/formats/supervisor.md): a POST to
// wirePrefix and the name of the call. A new daemon may find an old supervisor, so calls are only ever added, and what is
// not known is ignored.
const wirePrefix = "/v1/"

// The names of the calls.
const (
	callStart      = "start"
	callSignal     = "signal"
	callStop       = "stop"
	callStdin      = "stdin"
	callCloseStdin = "close-stdin"
	callRenew      = "renew"
	callFence      = "fence"
	callSweep      = "sweep"
	callForget     = "forget"
	callList       = "list"
	callEvents     = "events"
	callOutput     = "output"
	callAck        = "ack"
	callEnforced   = "enforced"
	callShutdown   = "shutdown"
)

// startRequest is a Spec whose strings are bytes: JSON has no others.
type startRequest struct {
	Spec
	Argv, Env [][]byte
	Dir       []byte
	SpoolMax  int64
}

func newStartRequest(s Spec, spoolMax int64) startRequest {
	return startRequest{Spec: s, Argv: toBytes(s.Argv), Env: toBytes(s.Env), Dir: []byte(s.Dir), SpoolMax: spoolMax}
}

func (r startRequest) spec() Spec {
	s := r.Spec
	s.Argv, s.Env, s.Dir = toStrings(r.Argv), toStrings(r.Env), string(r.Dir)
	return s
}

func toBytes(ss []string) [][]byte {
	bs := make([][]byte, len(ss))
	for i, s := range ss {
		bs[i] = []byte(s)
	}
	return bs
}

func toStrings(bs [][]byte) []string {
	ss := make([]string, len(bs))
	for i, b := range bs {
		ss[i] = string(b)
	}
	return ss
}

// The other requests; calls without arguments take none.
type (
	idRequest     struct{ ID ID }
	signalRequest struct {
		ID     ID
		Signal syscall.Signal
	}
	stopRequest struct {
		ID    ID
		Grace time.Duration
	}
	renewRequest  struct{ Until time.Duration }
	epochRequest  struct{ Epoch uint64 }
	eventsRequest struct{ After uint64 }
	outputRequest struct {
		ID     ID
		Stream Stream
		Beyond int64 // answer when the size is more, or final
	}
	ackRequest struct {
		ID     ID
		Stream Stream
		Offset int64
	}
)

// enforcedReply is Enforced, the highest epoch of a fence, and which supervisor it is. Older ones do not tell the last two.
type enforcedReply struct {
	Enforced
	Fence    *uint64 `json:",omitempty"`
	Instance string  `json:",omitempty"`
}

// stdinReply names a descriptor of the supervisor, and the pipe that it must be when it is opened.
type stdinReply struct {
	Path  string
	Inode uint64
}

// failure is the answer to a call that failed.
type failure struct {
	Kind   sys.Kind
	Reason string // which of the sentinels, "" for none
	Text   string
}

// errEnding is the answer of a supervisor that is about to end. The next one may be asked again.
var errEnding = errors.New("the supervisor is ending")

// sentinels are the errors that must stay what they are on their way through the socket.
var sentinels = map[string]error{
	"not found":      ErrNotFound,
	"not executable": ErrNotExecutable,
	"no directory":   ErrNoDirectory,
	"no user":        ErrNoUser,
	"away":           ErrAway,
	"ending":         errEnding,
}

func newFailure(err error) failure {
	f := failure{Kind: sys.KindOf(err), Text: err.Error()}
	if e, ok := err.(*sys.Error); ok { // who called knows the call, and people who read why a process did not start need not
		plain := *e
		plain.Op = ""
		f.Text = plain.Error()
	}
	for name, s := range sentinels {
		if errors.Is(err, s) {
			f.Reason = name
		}
	}
	return f
}

func (f failure) error() error { return &remoteError{f} }

// remoteError is an error of the other half.
type remoteError struct{ failure }

func (e *remoteError) Error() string { return e.Text }

// Unwrap gives the kind back, and the sentinel.
func (e *remoteError) Unwrap() []error {
	return []error{&sys.Error{Kind: e.Kind}, sentinels[e.Reason]}
}
