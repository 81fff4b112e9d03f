package meta

import (
	"context"

	"github.com/koinon/koinon/internal/sys"
)

// Database is an engine from outside that can hold the tree's rows: a place that many
// nodes reach, and one of them writes to (package mysql). Its methods may be called
// concurrently.
type Database interface {
	Querier
	// Lead takes office: it raises the fence to epoch, after which no transaction
	// of a lower one commits, and returns a leader, which the caller closes. It
	// fails with NotLeader when the fence is higher. applied may be nil.
	Lead(ctx context.Context, epoch uint64, applied Applied) (DatabaseLeader, error)
	// View opens a view, which the caller closes.
	View(ctx context.Context) (DatabaseView, error)
	// Sessions lists those whose results are kept.
	Sessions(ctx context.Context) ([]sys.SessionID, error)
}

// DatabaseLeader runs commands in a Database for one leadership. Its methods may be
// called concurrently.
type DatabaseLeader interface {
	Querier
	// Do runs a command. When it fails with Unavailable, the command may have been
	// run; the same request again tells.
	Do(ctx context.Context, req *Request) (Reply, error)
	// Seq counts the transactions that are committed. What a query that begins
	// later reads is at least as new.
	Seq() uint64
	// Close ends the leader. Commands that are waiting fail.
	Close()
}

// DatabaseView is the tree as it was at one point. It is used by one goroutine.
type DatabaseView interface {
	Querier
	// Close lets go of the view. That the server is away is fine.
	Close() error
}

// Request is a command of a session, or of nobody when Session is 0.
type Request struct {
	Session sys.SessionID
	// Seq numbers the session's commands from 1; a command that comes again
	// has the result it had. Ack is the highest number up to which the
	// session has all results.
	Seq, Ack uint64
	// Body is a metapb.Command. It stays as it is.
	Body []byte
	// Ends is a session that has ended: no command of it comes any more, and
	// with this one, which is nobody's, its results go.
	Ends sys.SessionID
}

// Reply is what became of a command.
type Reply struct {
	// Result is a metapb.Result, which also says that a command was refused.
	Result []byte
	// Outcome is nil when the command had been run before.
	Outcome *Outcome
}

// Applied hears of an outcome before anybody can see it. seq is the
// transaction that carries it, as DatabaseLeader.Seq counts.
type Applied func(seq uint64, req *Request, o *Outcome)
