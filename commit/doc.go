// Package commit is two-phase commit as a pure core: participants that each own something agree to change all of it or
// none of it. It takes in messages and the passing of time, and says what to store, to agree on and to send. It starts no
// goroutine, reads no clock, does no I/O and uses no randomness, so that the same inputs give the same outputs.
//
// # The protocol
//
// A coordinator asks every participant to prepare. A participant that can do its part makes that durable and votes yes:
// from then on it does as decided, however long that takes. If all vote yes the coordinator decides to commit, and
// tells them until all have acknowledged; a no or a timeout makes it abort. It is presumed abort of Mohan, Lindsay and
// Obermarck, "Transaction Management in the R* Distributed Database Management System": only commits are written down,
// and who asks about a transaction that nobody remembers is told that it is aborted.
//
// Plain two-phase commit blocks when the coordinator dies, so here its decision is not a write to its disk but a
// record in a replicated log, and there may be any number of coordinators, one after the other, or at once when one
// does not know yet that it has been deposed. What keeps them apart:
//
//   - A coordinator opens an epoch in the log before it does anything (RecordOpen). The log counts epochs.
//   - A transaction belongs to the epoch in which it began (Tx.Epoch). Only the coordinator of that epoch ever proposes
//     to commit it, and the log ignores commits of epochs that are over (Table.Apply).
//   - So when an epoch begins, what is committed of earlier ones is final: it is in the table, and everything else is
//     aborted. No record of begin or of abort is needed, and every coordinator's answer to a question is right for
//     ever. One that is asked about an epoch after its own knows that it is deposed, and is silent.
//
// A participant in doubt asks by repeating its yes, at growing intervals, and at once after a restart. It never gives
// up by itself: the commit may have been decided. What expires is thereby not the reservation but the patience to wait
// without asking, and since the coordinator is a replicated group there is somebody to answer.
//
// # Late messages
//
// A participant must not prepare what it has finished: the coordinator may still be telling others to commit, would
// answer the second yes alike, and the change would be made twice. So a finished transaction leaves a tombstone. They
// do not grow without bound: every message of a coordinator carries Low, the number of the first transaction of its
// epoch in which this participant still has a part. (Epoch, Low) only rises; a participant keeps the highest as its
// floor, durably, refuses to prepare anything below it, and deletes the tombstones there. That is safe because
//
//   - a transaction below Low has ended here: this participant has acknowledged its commit or voted read-only, or it is
//     aborted, and no coordinator waits for its vote;
//   - one of an earlier epoch cannot be committed any more unless it is so already, which took this participant's yes;
//   - both stay true, so that a prepare below the floor is nothing but late.
//
// The coordinator begins at most Config.Window transactions with a participant beyond Low (ErrBusy), and what a participant
// has heard of lies within the window of the newest message that it has heard, so it keeps at most Window tombstones. A
// participant that is away holds up nobody else's floor.
//
// # Driving a coordinator
//
// The leader of the group that keeps the log proposes Record{Kind: RecordOpen}. Every replica applies every record to
// its Table, which is part of the replicated state. When the open has been applied, the proposer makes
// NewCoordinator(cfg, table.Epoch, table.Commits, now), and then calls Begin, Step for every message from a participant,
// Tick every few milliseconds, and after each, while HasReady, does what Ready says:
//
//  1. Sends Send at once.
//  2. Proposes each of Agree, and when it is applied, calls Agreed with what Table.Apply returned. Nobody is told to
//     commit before that. A proposal whose fate is unknown may be proposed again.
//  3. Tells whoever waits for Outcomes.
//  4. When Deposed: nothing more can be done with this coordinator; drop it when its proposals are applied. It may be dropped
//     at any time, as by a crash: the next one tells the participants.
//
// # Driving a participant
//
// A plain node keeps Recovered on its own disk. A participant that is itself a replicated group keeps it in its state,
// and its leader makes a Participant of that. The driver calls Step, Tick, and Vote in answer to each of Ready.Prepare, and
// does what Ready says:
//
//  1. Sends Send at once.
//  2. Makes Floor and Changes durable (see Change for what each means); then sends SendAfter and calls Persisted(Seq).
//     Many Readies may share one sync. In a group this is an entry of its log; without Changes, any proof that this
//     replica still leads. A deposed one thereby never says anything that binds the group.
//  3. Finds out for each of Prepare whether it can be done, reserves it, and calls Vote.
//
// A group of transactions has one coordinator's group; a participant of several has one Participant for each.
//
// # Messages
//
// Any encoding will do. Between a coordinator (C) and a participant (P), with Party and Tx in all of them, and Epoch and Low
// in those of C:
//
//	Prepare  C to P  Payload            can you do this?
//	Vote     P to C  Vote, Reason       yes: prepared, tell me what is decided; no, because; read-only: leave me out
//	Commit   C to P                     it is committed: make the change and acknowledge
//	Ack      P to C                     the change is durable
//	Abort    C to P                     it is aborted: release what you reserved; nobody answers
//	Unknown  C to P                     answer to a yes: aborted, if you are still in doubt
//
// Messages to C go to whoever leads its group.
//
// # Assertions
//
// Rules whose violation would tear a transaction are checked in production as well: a commit has all its votes, is agreed
// before it is told, and is never decided otherwise; a participant commits only what it has durably prepared; what is
// committed is never aborted; no acknowledgement comes before the commit. A broken one panics.
package commit
