// Package kv is the coordination service: keys with revisions, watches, and
// locks with fencing tokens.
//
// [Machine] is its namespace of the replicated state. There is one revision
// for all of it: each command that changes something gets the next one, and
// history is kept for a while, so that watches can resume and the past can be
// read. [Server] answers at the leader and ends sessions that do not renew in
// time; [Client] reaches it from anywhere, each command taking effect once;
// [Session] holds locks and ephemeral keys as long as it is renewed.
//
// What a lock means is in docs/decisions/0005-what-a-lock-means.md, the rows
// are in docs/formats/kv.md.
package kv

import (
	"time"

	"github.com/koinon/koinon/internal/wire"
)

// Methods of this package on the wire. Only the leader answers them, but for a
// stale Query.
const (
	MethodDo    wire.Method = 400 // DoRequest, Command -> Result
	MethodQuery wire.Method = 401 // nothing, Query -> Answer
	MethodWatch wire.Method = 402 // WatchRequest -> WatchReply
	MethodAwait wire.Method = 403 // AwaitRequest -> AwaitReply
	MethodRenew wire.Method = 404 // RenewRequest -> nothing
)

// The limits of a command, in bytes but for ChangesMax.
const (
	KeyMax     = 4 << 10
	ValueMax   = 1 << 20
	ChangesMax = 128     // changes, and as many comparisons
	TxnMax     = 4 << 20 // of a whole command
	// BoundMax is how many locks, places in queues and ephemeral keys a
	// session may have: its end releases them in one command.
	BoundMax = 1024
)

// A session lives for between TTLMin and TTLMax without a renewal. TTLMax is
// well below the time after which the log itself ends silent sessions.
const (
	TTLMin = time.Second
	TTLMax = 30 * time.Second
)

// wait is for how long the leader adds to a session's time to live for clocks
// that run apart: a twentieth is far more than crystals differ.
func grace(ttl time.Duration) time.Duration { return ttl + ttl/20 }
