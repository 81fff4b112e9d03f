// Package proc is the process table: what people have asked to be run on the
// cluster's nodes, what runs, and what became of it.
//
// A job is one task or an array of them; a task is a gang of processes that
// start together or not at all. [Machine] is the table's namespace of the
// replicated state. [Server], at the leader, chooses nodes for what waits
// (package sched), has the nodes reserve all of it or nothing (package commit;
// its decisions are in the log), and declares nodes lost. Package agent is a
// node's half: it votes, starts, watches and tells. [Client] reaches both from
// anywhere.
//
// Never are there two live copies of a process: every try of a task has an
// epoch, a node may let its processes run only as long as the lease that the
// leader's answers to its heartbeats give it, and the leader declares a node
// lost only when that lease has certainly ended.
//
// The rows are in docs/formats/proc.md, the reasons in
// docs/decisions/0010-processes.md.
package proc

import (
	"time"

	"github.com/koinon/koinon/internal/wire"
)

// Methods of this package on the wire. Those below MethodParty are answered by
// the leader, the others by each node.
const (
	MethodSubmit    wire.Method = 500 // nothing, Submit -> SubmitReply
	MethodList      wire.Method = 501 // ListRequest -> ListReply
	MethodWait      wire.Method = 502 // WaitRequest -> WaitReply
	MethodInspect   wire.Method = 503 // InspectRequest -> InspectReply
	MethodKill      wire.Method = 504 // KillRequest -> Result
	MethodNodes     wire.Method = 505 // nothing -> NodesReply
	MethodDrain     wire.Method = 506 // DrainRequest -> Result
	MethodHeartbeat wire.Method = 507 // nothing, Heartbeat -> HeartbeatReply; from nodes
	MethodVotes     wire.Method = 508 // nothing, Messages -> nothing; from nodes
	MethodBegan     wire.Method = 509 // nothing, Began -> Result; from nodes
	MethodEnded     wire.Method = 510 // nothing, Ended -> Result; from nodes, which forget what was taken

	MethodParty  wire.Method = 520 // nothing, Messages -> Messages; from the leader
	MethodSignal wire.Method = 521 // SignalRequest -> nothing; from the leader
	MethodOutput wire.Method = 522 // OutputRequest -> OutputReply
	MethodStdin  wire.Method = 523 // StdinRequest, bytes -> StdinReply
)

// Limits.
const (
	SizeMax    = 256     // processes of a task
	ArrayMax   = 10_000  // tasks of a job
	SpecMax    = 1 << 20 // bytes of an encoded Spec
	InlineMax  = 8 << 10 // bytes of either output that may come with a Report
	ReportsMax = 256     // of one Began or Ended
	AfterMax   = 64      // jobs that a job waits for

	// With less than these a process would not get as far as its program.
	CPUMin    = 10      // thousandths of a CPU
	MemoryMin = 1 << 20 // bytes
)

const (
	// GraceDefault is the time from TERM to KILL when a Spec says nothing.
	GraceDefault = 10 * time.Second
	// Beat is how often a node gives a sign of life.
	Beat = time.Second
	// LostAfter is how long after the last answer the leader declares a node
	// lost. A lease, which lets the node's processes run on, is two thirds of it,
	// from the sending of the heartbeat: less by far more than clocks drift and a
	// KILL takes.
	LostAfter = 15 * time.Second
	Lease     = LostAfter * 2 / 3
	// Retention is how long ended jobs stay in the table.
	Retention = 7 * 24 * time.Hour
)

// FirstVersion is the Version of a job that has just been submitted.
const FirstVersion = 1

// Exit codes of a process that was not run, as env(1) and the shell have them.
const (
	ExitTrouble   = 125 // Koinon itself could not
	ExitForbidden = 126 // the command may not be run
	ExitNotFound  = 127 // there is no such command
)
