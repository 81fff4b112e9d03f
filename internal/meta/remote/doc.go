// Package remote is the tree over the wire: Server answers at the leader,
// Client is a meta.Client that reaches it from anywhere, exactly once, and
// caches what it read under leases.
//
// # Leases
//
// The leader remembers which session may cache which inode: its attributes,
// its extended attributes, its first chunk, and, of a directory, its entries.
// A change is answered to its caller, and shown to any reader, only when every
// other session that may hold the old value has confirmed that it gave it up,
// or can no longer be holding it because it has not renewed its lease for
// Term. So a cached read is as good as one from the leader (Gray and Cheriton,
// Leases, SOSP 1989).
//
// A client renews by a call that the leader holds open for a moment and
// answers with what is to be given up; the next call confirms it. Its lease
// runs for Term from the moment it sent the renewal. A new leader knows of no
// leases, so it shows no change until every session has renewed with it, which
// makes the client drop everything, or Term has passed.
//
// # Sole directories
//
// A directory that only one session uses, the leader lets it have to itself:
// nobody else finds, lists, makes or removes a name in it before the session
// has given it back, which is asked for as a revocation is. There the client's
// user may promise a file instead of making it (Client.Vacant); it makes what
// it promised before the client confirms (Promises). A new leader waits for
// promises of the last one as it does for caches (sole.go).
package remote

import (
	"time"

	"github.com/koinon/koinon/internal/wire"
)

// Methods of this package on the wire. Only the leader answers them.
const (
	MethodDo    wire.Method = 200 // DoRequest -> DoReply
	MethodQuery wire.Method = 201 // QueryRequest -> QueryReply
	MethodRenew wire.Method = 202 // RenewRequest -> RenewReply
	MethodView  wire.Method = 203 // ViewRequest -> ViewReply
	MethodLoad  wire.Method = 204 // koinon.meta.v1.Load as payload -> Result
)

const (
	// Term is how long a lease lasts from the sending of a renewal.
	Term = 450 * time.Millisecond
	// renewHold is how long the leader keeps a renewal that has nothing to
	// revoke. It leaves the client most of Term to renew in.
	renewHold = 100 * time.Millisecond
	// drift is what the leader adds to Term for clocks that run apart.
	drift = 25 * time.Millisecond
	// SessionLife is how long the leader keeps a session that does not renew.
	SessionLife = time.Minute
)
