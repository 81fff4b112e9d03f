// Package disk keeps blocks in append-only segments in one directory.
//
// A segment is a file of records. A record is a 4 KiB header that carries
// the key, the length, the checksums of every page and its own checksum,
// followed by the payload. Where each block lies is known from an index in
// memory, which Open rebuilds from the segments: from their hint files, which
// are written when a segment is full, or by walking the record headers. The
// bytes are described in docs/formats/segments.md.
//
// Life of a Put: the sums are checked against the bytes that arrived, room is
// reserved at the end of the active segment under the store's lock, the bytes
// are written outside it, and then the index learns of them. Sync runs one
// fdatasync for everybody who waits. A Delete is a record too, a tombstone,
// and its key is refused for ever, so that healing cannot bring a block back.
// Segments that are mostly dead are copied out and removed in the background.
package disk
