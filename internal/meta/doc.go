// Package meta is the tree: inodes, names, chunks and extended attributes, and
// every rule of POSIX about them, written once.
//
// A change is a metapb.Command and [Apply] runs it; a question is a
// metapb.Query and [Read] answers it. Both work on a [Tx], a dozen typed
// methods that an engine implements and that know no rules. Apply is
// deterministic: time and credentials are in the command, identifiers come from
// counters in the tree, nothing depends on the order of a map. It checks all
// before it writes anything, so a refused command has written nothing.
//
// Those who use the tree do so through [Client], wherever it is. [Memory] is
// the engine for tests; package embedded is the one on replicated Pebble. The
// rows are described in docs/formats/tree.md.
//
// # The hidden inodes
//
// Three inodes that no name leads to keep the tree's own books, so that an
// engine needs no further tables:
//
//   - sys.QuarantineIno, a directory, holds what has lost its last link until
//     its deadline. Trash, files that are open but unlinked, and garbage
//     collection are all this one mechanism: see quarantine.go.
//   - sys.FreedIno, a file, queues slices whose blocks may go: see freed.go.
//   - sys.PendingIno, a file, records which slice numbers are reserved and not
//     committed: see pending.go.
//
// # Who checks permission
//
// Every command and query is checked against its Cred; an absent Cred is root.
// What works on an open file (Commit, Fallocate, GetChunks) is not: the
// permission was checked when the file was opened, and POSIX wants it to hold
// whatever chmod says later.
package meta
