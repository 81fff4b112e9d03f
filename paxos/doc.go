// Package paxos is Multi-Paxos as a pure core: it takes in messages and the passing of time, and says what to store, to
// send and to apply. It starts no goroutine, reads no clock, does no I/O except through Config.Log, and draws randomness
// from Config.Rand only, so that the same inputs give the same outputs.
//
// # The protocol
//
// A group of voters agrees on one value for each slot of a log. A node that wants to lead picks a ballot that nobody
// else can own, and asks a majority to promise not to accept anything older (Prepare, Promise: phase 1, for all slots
// from the first that it does not know to be chosen). Promises report what has been accepted there; the new leader
// proposes it again under its own ballot, with no-ops in the holes, before anything of its own. From then on one round
// trip chooses a value (Accept, Accepted: phase 2): it is chosen when a majority has it on stable storage under the
// same ballot. See Lamport, "Paxos Made Simple"; Chandra, Griesemer, Redstone, "Paxos Made Live".
//
// Around that: a pre-vote, so that a node that merely cannot hear the leader does not disturb it; a leader steps down
// when it has not heard a majority for an election timeout; followers that lag are brought up from memory, from the
// log, or by a snapshot; leader leases for reads that ask nobody (LeaseRead), and read indexes, which need no clock
// (ReadIndex).
//
// # Members
//
// Who is in the group is decided by the group (ProposeConfig): an entry of kind Configure, chosen at slot s, governs from
// slot s+Alpha on. Since nobody proposes more than Alpha slots beyond what is chosen, whoever proposes in a slot knows
// which configuration governs it, and so do all others: every slot is an instance of Paxos of its own with one set of
// voters. A leader has promises from a quorum of every configuration in whose slots it proposes; a candidate learns
// of configurations on their way from the promises that it gets, and asks their voters too. Learners receive everything and
// never vote. See Lamport, Malkhi, Zhou, "Reconfiguring a State Machine", and docs/consensus.md.
//
// A node that is added starts with no Voters and an empty history, and waits to be spoken to. Its first question to
// the leader is for a snapshot, which carries the history. A node that has been removed keeps quiet once it knows.
//
// # Driving a node
//
// A node belongs to one goroutine, or to a lock. The driver's loop is
//
//	for {
//		select {
//		case m := <-received:
//			err := node.Step(clock(), m) // the clock is read after the message came
//		case <-ticker: // every few milliseconds
//			node.Tick(clock())
//		case c := <-commands:
//			slot, ballot, err := node.Propose(clock(), c)
//		case seq := <-synced:
//			node.Persisted(seq)
//		case slot := <-applied:
//			node.Applied(slot)
//		}
//		for node.HasReady() {
//			handle(node.Ready())
//		}
//	}
//
// where handle does, with a Ready r:
//
//  1. Sends r.Send at once. These messages depend on nothing that is not durable yet: a leader's Accepts travel
//     while its own disk is still writing. Messages between two nodes should stay in order; where they do not, the
//     protocol is still right, but asks for things twice.
//  2. If r.Seq is not zero, hands r.Promised (if r.HardChanged), r.Accept, and if it likes r.Chosen, to the log. When all of
//     that and everything of lower numbers is on stable storage it sends r.SendAfter and calls Persisted(r.Seq). Many
//     Readies may share one sync; only the last number need be reported. After a failed sync nothing that follows can
//     be trusted: stop the process.
//  3. Hands r.Apply to the state machine, in order, and calls Applied when that is done. Entries come here only when they
//     are chosen and durable in this node's own log. A Noop is applied as nothing, and so is a Configure; but the
//     state's History becomes History.Apply of every entry, and is stored with the state's slot, atomically.
//  4. Answers each of r.Reads when the state machine has applied its slot.
//  5. For each of r.SnapshotTo streams its state to that peer in the background, then calls SnapshotDone. The peer's
//     driver installs the state atomically, together with its slot and its History, keeps its promise and its log entries
//     above that slot, and calls InstalledSnapshot.
//  6. When r.Configs is not nil, connects to the members that it names, and makes r.Chosen durable. Messages of nodes that
//     are not among them have to be delivered all the same: this node may be the one that has not heard yet.
//
// Once the state machine's own durable state includes a slot, the log may be cut up to it, when the driver likes
// (Truncate). The other way round needs no care: applied state never gets ahead of the durable log.
//
// After a restart the driver passes to New what its log and its state machine hold; see Recovered. A replica that has
// lost its disk must come back under a new identity: under the old one it would break its promises. The example is a
// complete driver, except that it forgets everything when it ends.
//
// # Reads
//
// With a lease: call LeaseRead, wait until its slot is applied (mostly it is already), read the state, then the clock. If the
// clock is before LeaseRead's time, what was read is linearizable. The order matters: a lease looked up last may belong
// to a leadership that began after the state was read, and a clock read first says nothing about a pause that comes
// after it. With a read index: call ReadIndex with a fresh id, wait for it in Ready.Reads, wait for its slot to be applied,
// read.
//
// # Assertions
//
// Rules whose violation would lose data are checked in production as well: promises never fall, accepted ballots never
// exceed them, one value per slot and ballot, a chosen value never changes, proposed is at most chosen+Alpha, applied is
// contiguous and at most chosen, truncated at most applied. A broken one panics: a replica that has broken a rule must not go on.
package paxos
