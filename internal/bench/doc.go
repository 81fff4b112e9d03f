// Package bench measures a mounted directory, ours or anybody's: metadata
// operations, small files, large files, random access and a real source tree,
// with one and with many workers, on one directory or on two in turn.
//
// It measures from outside, through system calls alone, and takes as little of
// the machine as it can: a worker is one locked thread with one buffer and one
// fixed histogram; nothing is allocated, locked or printed between two timed
// operations. Every byte written carries a stamp that the readers check, so a
// file system that answers fast with wrong bytes fails the benchmark.
//
// "Cold" tests drop the kernel's caches first, where the process may (root on
// Linux); what a file system's own daemons keep in memory stays there, for us
// and for peers alike. A report says which was done.
package bench
