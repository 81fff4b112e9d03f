package meta

import (
	"errors"
	"strconv"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// FailureOf returns err as it is sent: operation, kind, subject and cause. It
// is nil for nil. (*metapb.Failure).Err is the way back.
func FailureOf(err error) *metapb.Failure {
	if err == nil {
		return nil
	}
	e, ok := errors.AsType[*sys.Error](err)
	if !ok {
		return &metapb.Failure{Kind: uint32(sys.Other), Cause: utf8(err.Error())}
	}
	f := &metapb.Failure{Kind: uint32(e.Kind), Op: utf8(string(e.Op)), Subject: utf8(string(e.Subject))}
	if e.Err != nil {
		f.Cause = utf8(e.Err.Error())
	}
	return f
}

// utf8 makes s fit for a protobuf string.
func utf8(s string) string {
	for _, r := range s {
		if r == '\uFFFD' {
			q := strconv.QuoteToASCII(s)
			return q[1 : len(q)-1]
		}
	}
	return s
}

// refusal is the answer no to a command or query, as opposed to trouble of the
// engine. The rules return it before they write.
type refusal struct {
	kind    sys.Kind
	subject string
	cause   string
}

func (r *refusal) Error() string { return r.subject + ": " + r.kind.String() + ": " + r.cause }

func (r *refusal) failure(op string) *metapb.Failure {
	return &metapb.Failure{Kind: uint32(r.kind), Op: op, Subject: r.subject, Cause: r.cause}
}

// refuse says no about an inode.
func refuse(k sys.Kind, ino sys.Ino, cause string) error {
	return &refusal{kind: k, subject: "inode " + strconv.FormatUint(uint64(ino), 10), cause: cause}
}

// refuseName says no about a name, which may be any bytes.
func refuseName(k sys.Kind, name []byte, cause string) error {
	if len(name) > sys.NameMax {
		name = name[:sys.NameMax]
	}
	return &refusal{kind: k, subject: strconv.QuoteToASCII(string(name)), cause: cause}
}
