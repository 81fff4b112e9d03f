package commit

import (
	"errors"
	"fmt"
)

// Party names a participant: whoever owns something that transactions change. One that has lost its durable state
// must come back under a new name.
type Party uint64

// Time is a reading of a party's own monotonic clock in nanoseconds. Readings of different parties are never
// compared, and only liveness depends on them.
type Time int64

// Tx names a transaction: the coordinator's epoch in which it began, and its number within the epoch, from 1. No
// name is ever used twice. The zero value is before all of them.
type Tx struct{ Epoch, Seq uint64 }

// Less reports whether t began before o.
func (t Tx) Less(o Tx) bool { return t.Compare(o) < 0 }

// Compare is negative when t began before o, zero when they are the same, and positive otherwise.
func (t Tx) Compare(o Tx) int {
	switch {
	case t == o:
		return 0
	case t.Epoch < o.Epoch || t.Epoch == o.Epoch && t.Seq < o.Seq:
		return -1
	}
	return 1
}

// String is "epoch.seq".
func (t Tx) String() string { return fmt.Sprintf("%d.%d", t.Epoch, t.Seq) }

// Vote is a participant's answer to a prepare.
type Vote uint8

// The votes. The zero vote is none.
const (
	Yes      Vote = iota + 1 // prepared and durable: will do as decided, however long that takes
	No                       // refused; the transaction will be aborted
	ReadOnly                 // nothing to change here: no part in the decision, nothing kept
)

// State is what a participant has durably recorded about a transaction.
type State uint8

// The states. All but Prepared are final; they stay as tombstones until the floor has passed them.
const (
	Prepared  State = iota + 1 // voted yes, in doubt until the decision is known
	Committed                  // the change has been made
	Aborted                    // nothing has been changed, what was reserved has been released
	Read                       // voted read-only
	Gone                       // the record is deleted
)

// MessageKind tells what a message says.
type MessageKind uint8

// The kinds of message. Party and Tx count for all of them, Epoch and Low for those that a coordinator sends.
const (
	// MsgPrepare asks a participant whether it can do its part, which is Payload.
	MsgPrepare MessageKind = iota + 1
	// MsgVote answers with Vote, and with a Reason when it is No. A yes is also the question what has been decided:
	// a participant in doubt repeats it.
	MsgVote
	// MsgCommit says that the transaction is committed.
	MsgCommit
	// MsgAbort says that it is aborted. Nobody answers.
	MsgAbort
	// MsgUnknown answers a yes: there is no such transaction any more. To a participant that is in doubt this means
	// abort; to one that is not it means nothing.
	MsgUnknown
	// MsgAck answers a commit: the change is durable.
	MsgAck
)

// Message is what a coordinator and a participant say to each other. It is flat, so that any encoding will do; an
// unused field is zero. A message may be lost, delayed, repeated and reordered, but not altered. Payload is shared
// and must not be written to.
type Message struct {
	Kind  MessageKind
	Party Party // the participant that sends or receives it; the other end is the coordinator's group
	Tx    Tx
	Epoch uint64 // of the coordinator that sends it
	// Low is a transaction number within Epoch: Party has no part any more in those before it, so that whatever asks
	// it to prepare one of those, or one of an earlier epoch, is late.
	Low     uint64
	Vote    Vote
	Payload []byte
	Reason  string
}

// RecordKind tells what a record of the coordinator's log says.
type RecordKind uint8

// The kinds of record.
const (
	// RecordOpen begins the next epoch. No transaction of an earlier one can be committed after it.
	RecordOpen RecordKind = iota + 1
	// RecordCommit commits Tx; Parties are to be told.
	RecordCommit
	// RecordForget ends Tx: all parties have made the change.
	RecordForget
)

// Record is an entry of the coordinator's log.
type Record struct {
	Kind    RecordKind
	Tx      Tx
	Parties []Party // of a commit, ascending; shared and not to be written to
}

// Config is the shape of coordinators and participants. Times are durations in nanoseconds.
type Config struct {
	PrepareTimeout Time // a transaction whose votes are not complete by then is aborted; default 2 s
	Resend         Time // first wait for an answer, doubled from try to try; default 100 ms
	ResendMax      Time // longest wait for an answer; default 5 s
	// Window bounds how many transactions may have begun with a participant since the oldest one that it still has a
	// part in, and thereby how many tombstones it keeps; default 1024.
	Window int

	bugs Bug // planted by Sabotage
}

func (c Config) withDefaults() Config {
	for _, d := range []struct {
		field *Time
		value Time
	}{{&c.PrepareTimeout, 2e9}, {&c.Resend, 100e6}, {&c.ResendMax, 5e9}} {
		if *d.field <= 0 {
			*d.field = d.value
		}
	}
	if c.Window <= 0 {
		c.Window = 1024
	}
	return c
}

// Errors of the calls. They are returned as they are or wrapped.
var (
	ErrDeposed    = errors.New("commit: a later coordinator has taken over; ask that one")
	ErrBusy       = errors.New("commit: too many transactions since the oldest unfinished one of a participant; try again when it has finished")
	ErrParties    = errors.New("commit: a transaction needs at least one participant, and each only once")
	ErrBadMessage = errors.New("commit: malformed message")
	ErrDecided    = errors.New("commit: it is too late to abort, or there is no such transaction")
	ErrNotAsked   = errors.New("commit: no vote is wanted: the transaction has been aborted meanwhile; release what was reserved")
)

// broken stops a party that has found a rule of the protocol broken.
func broken(format string, args ...any) { panic("commit: " + fmt.Sprintf(format, args...)) }
