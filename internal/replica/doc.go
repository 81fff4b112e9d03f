// Package replica keeps state machines (package rsm) replicated: it drives the
// pure paxos core with a disk, a clock and a network.
//
// A [Host] is one node's share. It owns a directory with one write-ahead log
// for all groups (package wal) and one Pebble instance that holds the state.
// Pebble's own log is off: the Paxos log is the log, and the applied slot is
// in the same Pebble batch as the state it made.
//
// The path of one command:
//
//	Group.Propose → queue → driver: EntryBatch, paxos.Propose
//	  → Accept messages leave at once, the own log write is merged and synced
//	  → a majority is durable → chosen → applier: Machine.Apply on a Tx
//	  → OnApply hooks → Pebble batch becomes visible → result to the proposer
//
// One goroutine, the driver, steps all groups and does nothing slow. The log
// writer, one applier per group, and the snapshot streams run beside it. They
// wait only in the [env.Sched] of the Config, and hold no lock meanwhile, so that
// a simulator can run one of them at a time (internal/sim/hosts).
//
// Who is in a group is part of its state and changes by its log: see
// [Group.Reconfigure]. Where the nodes are comes from outside: [Host.SetPeers].
package replica
