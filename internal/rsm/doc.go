// Package rsm is what a replicated state machine sees of the log that keeps it:
// the commands it is given and the rows it keeps (Machine, Tx, Reader), and the
// group that agrees on them (Group). Package replica implements it on a disk; who
// writes a machine, or serves one, needs this package alone.
//
// A Machine is one namespace of a group's state. It is deterministic: what it does
// may depend on the command, its Stamp and the state, on nothing else. Namespace 0
// is built in and holds sessions, which make commands exactly-once.
package rsm
