package wire

import (
	"context"
	"errors"
	"math"
	"strings"

	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/wire/wirepb"
)

// MaxDetail is the most bytes of detail that travel with an error.
const MaxDetail = 1 << 20

// maxErrorDepth bounds how many *sys.Error of one chain cross the wire;
// maxErrorText bounds each text, in bytes.
const (
	maxErrorDepth = 8
	maxErrorText  = 2 << 10
)

// unsent marks an error of a request that was certainly not executed.
type unsent struct{ err error }

func (u *unsent) Error() string { return u.err.Error() }
func (u *unsent) Unwrap() error { return u.err }

// IsUnsent reports whether err says that the request was certainly not
// executed: it never left this process, or the server refused to run it. Such
// a request may be repeated elsewhere without asking whether it is idempotent.
func IsUnsent(err error) bool {
	_, ok := errors.AsType[*unsent](err)
	return ok
}

// remote is the innermost cause of an error that came over the wire.
type remote struct {
	text   string
	detail []byte
}

func (r *remote) Error() string { return r.text }

// DetailOf returns the payload that the handler answered together with its
// error, and whether there was any.
func DetailOf(err error) ([]byte, bool) {
	r, ok := errors.AsType[*remote](err)
	if !ok {
		return nil, false
	}
	return r.detail, len(r.detail) > 0
}

// Detail makes the error of a call carry detail as if a handler had answered
// it, for fakes of Caller.
func Detail(err error, detail []byte) error {
	return decodeError(encodeError(err), detail, false)
}

// encodeError writes err as the header of an error frame.
func encodeError(err error) []byte {
	return pb.Marshal(errorToProto(err, maxErrorDepth))
}

func errorToProto(err error, depth int) *wirepb.Error {
	se, ok := err.(*sys.Error)
	if !ok {
		// Something wraps the *sys.Error, or there is none: its kind and its
		// whole text cross.
		return &wirepb.Error{Kind: uint32(kindOf(err)), Text: clip(err.Error())}
	}
	p := &wirepb.Error{Kind: uint32(kindOf(err)), Op: clip(string(se.Op)), Subject: clip(string(se.Subject))}
	switch {
	case se.Err == nil:
	case depth <= 1:
		p.Text = clip(se.Err.Error())
	default:
		if _, nested := se.Err.(*sys.Error); nested {
			p.Cause = errorToProto(se.Err, depth-1)
		} else {
			p.Text = clip(se.Err.Error())
		}
	}
	return p
}

// kindOf is sys.KindOf, which also knows what a context's end means.
func kindOf(err error) sys.Kind {
	k := sys.KindOf(err)
	if k != sys.Other {
		return k
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return sys.Unavailable
	case errors.Is(err, context.Canceled):
		return sys.Interrupted
	}
	return k
}

// clip bounds s and makes it valid UTF-8.
func clip(s string) string {
	if len(s) > maxErrorText {
		s = s[:maxErrorText]
	}
	return strings.ToValidUTF8(s, "?")
}

// decodeError reads the header of an error frame. The result is always a
// *sys.Error.
func decodeError(header, detail []byte, notExecuted bool) error {
	var p wirepb.Error
	if err := pb.Unmarshal(header, &p); err != nil {
		return sys.E(sys.Op("wire.decodeError"), sys.Other, "the peer sent an error that cannot be read: "+err.Error())
	}
	r := &remote{}
	if len(detail) > 0 {
		r.detail = append([]byte(nil), detail...)
	}
	return errorFromProto(&p, r, notExecuted, maxErrorDepth)
}

func errorFromProto(p *wirepb.Error, r *remote, notExecuted bool, depth int) error {
	e := &sys.Error{Op: sys.Op(p.GetOp()), Subject: sys.Subject(p.GetSubject())}
	if p.GetKind() <= math.MaxUint8 {
		e.Kind = sys.Kind(p.GetKind())
	}
	if c := p.GetCause(); c != nil && depth > 1 {
		e.Err = errorFromProto(c, r, notExecuted, depth-1)
		return e
	}
	r.text = p.GetText()
	if r.text == "" && r.detail != nil {
		r.text = e.Kind.String()
	}
	switch {
	case notExecuted:
		or(&r.text, "the request was not executed")
		e.Err = &unsent{r}
	case r.text != "" || r.detail != nil:
		e.Err = r
	}
	return e
}
