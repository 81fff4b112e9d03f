// Package vfs is the client's half of the tree: open files, reading, writing,
// cutting bytes into slices and blocks, and a bounded cache of blocks. It sits
// between whoever serves files (a mount, a gateway, a command) and the two
// halves of the cluster: meta, which agrees on names, and block, which keeps
// bytes.
//
// # What is kept here
//
// Metadata is not cached beyond one operation; the meta.Client may cache under
// leases. Per open inode there is one state that all handles share: the dirty
// bytes, and how the file's chunks are put together as of the version that was
// last seen. An answer that shows a newer version drops the latter.
//
// # The path of a write
//
// WriteAt copies into a run: a slice under construction (dirty.go). Each full
// block of a run is sent to the block store in the background. Flush seals the
// runs, sends what is left, and publishes all of them by one Commit (flush.go);
// a small file travels inside the Commit and has no block. Dirty bytes of all
// files together are bounded by Options.WriteBuffer (budget.go): writers wait,
// and the oldest dirty file is flushed. Blocks that were sent stay in memory
// until they are published or their memory is needed (kept.go): when the
// client's session ends before, with it end the slice numbers it had reserved,
// and the bytes are sent again under others (revive.go). Slices that come to
// nothing are given up, so that the collector takes their blocks (ids.go).
//
// # A new file
//
// Where Options.Vacant allows it, Create tells nobody: it gives a promise
// (promise.go). The first Commit becomes the body of the command that makes the
// file, so that a small file is one command from open to close.
//
// # The path of a read
//
// ReadAt overlays, from the top: dirty bytes, slices in commit order, the
// inline base, zeroes (layout.go, read.go). Slices are read in spans of 128
// KiB, or 1 MiB when reading is sequential, through one bounded cache
// (cache.go), with read-ahead (ahead.go). A span is memory that the block store
// has lent; View lends it on.
//
// # Appends
//
// What is written through a handle opened with O_APPEND goes to the end that
// the file has when it is published (append.go), so that several mounts may
// append to one file: nothing covers anything. What one flush publishes stays
// together. Until then the bytes are kept where the end is for this mount. An
// append of which a lost result leaves open whether it was published is
// published again.
package vfs
