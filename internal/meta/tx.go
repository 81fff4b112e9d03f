package meta

import (
	"context"
	"errors"
	"time"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

// Tx is what an engine keeps: typed rows, read and written within one command
// or query. It knows no rules.
//
// Reading what does not exist gives nil and no error. A returned message
// belongs to the caller, who may change it; a Set method keeps no reference to
// the message it was given. Reads see the writes made before through the same
// Tx. A nil message deletes the row. No Set method and
// no further scan is called from within a scan's callback, which stops the
// scan by returning false.
//
// A Tx is used by one goroutine at a time. Any error means that the engine is
// in trouble and that the command's writes must be thrown away.
type Tx interface {
	Inode(ino sys.Ino) (*metapb.Attr, error)
	SetInode(ino sys.Ino, a *metapb.Attr) error

	Dentry(parent sys.Ino, name []byte) (*metapb.Dentry, error)
	// SetDentry never changes the cookie of a name that exists, and gives no
	// two names of a directory the same cookie.
	SetDentry(parent sys.Ino, name []byte, d *metapb.Dentry) error
	// ScanDentries goes through the entries of parent whose cookie is above
	// after, in cookie order. name is valid until fn returns.
	ScanDentries(parent sys.Ino, after uint64, fn func(name []byte, d *metapb.Dentry) bool) error

	Chunk(ino sys.Ino, n uint32) (*metapb.Chunk, error)
	SetChunk(ino sys.Ino, n uint32, c *metapb.Chunk) error
	// ScanChunks goes through the chunks of ino from number from on, in order.
	ScanChunks(ino sys.Ino, from uint32, fn func(n uint32, c *metapb.Chunk) bool) error

	Xattrs(ino sys.Ino) (*metapb.Xattrs, error)
	SetXattrs(ino sys.Ino, x *metapb.Xattrs) error

	// ScanInodes goes through the inodes above after, in order of number.
	ScanInodes(after sys.Ino, fn func(a *metapb.Attr) bool) error

	// Counter adds delta and returns the sum. A counter starts at 0; a delta
	// of 0 writes nothing.
	Counter(name Counter, delta int64) (int64, error)
}

// OwnerScanner is what a Tx may be able to do beyond its duty, so that fsck
// can find rows that belong to no inode.
type OwnerScanner interface {
	// NextOwner returns the lowest number above after that has a chunk,
	// extended attributes or an entry, whether or not it has an inode; ok is
	// false when there is none.
	NextOwner(after sys.Ino) (ino sys.Ino, ok bool, err error)
}

// Inliner is what a Tx says whose engine is better off with the bytes of fewer
// files among its rows. Clients then keep to it; a Commit with up to
// sys.InlineMax bytes is carried out all the same.
type Inliner interface {
	// InlineMax is the size up to which a file's bytes are to be rows, at most
	// sys.InlineMax, which it is of other engines.
	InlineMax() uint32
}

// RowScanner is what a Tx may be able to do beyond its duty, for dumps: it goes
// through whole tables in key order from a key on, whether or not rows belong
// to an inode. Callbacks are as those of Tx. Writes made before through the
// same Tx may not be seen.
type RowScanner interface {
	AllDentries(parent sys.Ino, cookie uint64, fn func(parent sys.Ino, name []byte, d *metapb.Dentry) bool) error
	AllChunks(ino sys.Ino, n uint32, fn func(ino sys.Ino, n uint32, c *metapb.Chunk) bool) error
	AllXattrs(ino sys.Ino, fn func(ino sys.Ino, x *metapb.Xattrs) bool) error
}

// Counter names a number that the tree keeps.
type Counter uint8

// The counters. Their numbers are part of the on-disk format.
const (
	// CounterIno is the highest inode number given out.
	CounterIno Counter = 1
	// CounterSlice is the highest slice sequence number given out.
	CounterSlice Counter = 2
	// CounterBytes is the sum of the sizes of all inodes but the hidden ones.
	CounterBytes Counter = 3
	// CounterInodes is how many inodes there are but the hidden ones.
	CounterInodes Counter = 4
	// CounterFreed is the row of FreedIno that was written last.
	CounterFreed Counter = 5
	// CounterQuarantine is the highest cookie that an unlink gave out in the
	// quarantine.
	CounterQuarantine Counter = 6
	// CounterRetention is how many ns an unlinked inode stays in quarantine.
	CounterRetention Counter = 7
	// CounterLoad is the ID of the load that began last.
	CounterLoad Counter = 8
	// CounterBatches is how many batches of that load have been taken.
	CounterBatches Counter = 9
	// CounterMoves is how often the tree of this cluster was loaded. In a
	// database it equals what the log has, or the tree there is an old one.
	CounterMoves Counter = 10
)

var counterNames = [...]string{"", "ino", "slice", "bytes", "inodes", "freed", "quarantine", "retention", "load", "batches", "moves"}

// String returns the counter's name, as an engine with a table of names
// stores it.
func (c Counter) String() string {
	if int(c) < len(counterNames) {
		return counterNames[c]
	}
	return ""
}

// Client is the tree as those use it who mount it or look after it. Methods
// may be called concurrently. A refusal comes back as a *sys.Error, and the
// Result or Answer is nil then; otherwise its failure is nil.
type Client interface {
	// Do runs a command. The time in it is overwritten by whoever stamps it.
	Do(ctx context.Context, cmd *metapb.Command) (*metapb.Result, error)
	Querier
}

// Querier answers queries, concurrently and as Client does.
type Querier interface {
	// Query reads the tree as it is at one point between call and return.
	Query(ctx context.Context, q *metapb.Query) (*metapb.Answer, error)
}

// View is the tree as it was at one point, for those who need many queries of
// it. While it is open no block that the tree had then is deleted. It does not
// outlive the leadership under which it was opened, nor ViewLife without a
// query: then every query fails with ErrViewGone.
type View interface {
	Querier
	// Close lets go of the view; that it is gone is fine.
	Close(ctx context.Context) error
}

// ViewLife is how long a View stays open without a query.
const ViewLife = time.Minute

// ErrViewGone says that a View has ended, so that its user must start again.
var ErrViewGone = errors.New("the view of the tree is gone: the leader has changed, its database was away, or nothing was asked for a minute")

// Limits of the tree beyond those in package sys. They bound the size of rows,
// commands and answers.
const (
	// FileSizeMax is the largest size of a file, in bytes.
	FileSizeMax = 1 << 43
	// ChunksMax is how many chunks a file of FileSizeMax has.
	ChunksMax = FileSizeMax / sys.ChunkSize
	// SlicesMax is the longest list of slices of a chunk. A writer merges
	// long before.
	SlicesMax = 2048
	// AllocMax is how many numbers one AllocSlices reserves at most, and one
	// AllocInos gives out.
	AllocMax = 1024
	// FirstCookie is the lowest cookie of an entry. Those below are free for
	// "." and "..", which a listing's reader adds.
	FirstCookie = 16
	// ReadDirMax is the most entries one ReadDir returns.
	ReadDirMax = 1024
	// ScanMax is the most inodes one ScanInodes returns.
	ScanMax = 1024
	// GetChunksMax is the most chunks one GetChunks reads.
	GetChunksMax = 256
	// ReadFreedMax is the most rows one ReadFreed returns.
	ReadFreedMax = 256
	// PurgeMax is the most steps one Purge takes.
	PurgeMax = 4096
	// XattrListMax is the most that an inode's attribute names take, each
	// with a NUL after it, in bytes.
	XattrListMax = 64 << 10
	// XattrRowMax is the most that an inode's attribute names and values
	// take together, in bytes.
	XattrRowMax = 256 << 10
)
