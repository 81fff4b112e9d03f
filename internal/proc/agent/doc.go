// Package agent is a node's half of the process table (package proc): it says
// whether the node can take what it is asked to, starts it, watches it, and
// tells the leader.
//
// # The life of a process
//
// The leader asks the node to reserve what some ranks of a task need
// (MethodParty, package commit). The agent votes by the resources that it has
// left. On commit the reservation becomes a task, in the same durable step, and
// each of its ranks a process: it is started by the executor, its output is
// copied to its files of the tree when it runs for longer than a moment or
// prints much, and its end is reported until the leader has taken the report.
// When all ranks have ended the resources are free again.
//
// # What outlives the daemon
//
// The store keeps the participant's records and the tasks; the executor keeps
// what was started, how it ended, and what it printed. Between the two a
// process is started exactly once: its ID is made of the node's fence and the
// try of the task, the executor starts an ID once, and forgets it only after
// the store has forgotten the rank.
//
// # Leases and fences
//
// The answer to each heartbeat lets processes run for a while. A leader that
// has heard nothing for longer declares the node lost and raises its fence: the
// agent then ends everything, drops its reservations, and comes back as another
// party.
package agent
