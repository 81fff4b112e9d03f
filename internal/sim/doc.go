// Package sim drives real paxos nodes through a simulated world, single-threaded and from one seed: clocks that
// drift, now more and now less, and begin anew with the machine; disks that lose or tear what was not synced, are slow or full,
// cannot be read, are damaged, or are lost for good; a network that loses, repeats, delays and reorders; partitions of both
// kinds, pauses, crashes at any point; log truncation and snapshots that race each other. An administrator adds, promotes,
// demotes and removes members, the leader too, one or several at a time, and replaces lost disks under new identities.
//
// A run has two phases. In the first faults come at random while clients write and read; safety is checked after
// every step. Then everything is healed, and the group has to make progress and to agree. The same Options give the
// same run, event by event, which Result.Hash attests.
//
// What is checked: every value applied had been accepted at one ballot on the disks of a quorum of the configuration
// that governs its slot, and was proposed with promises of such a quorum; no slot is ever applied with two values; every
// replica applies a contiguous prefix of one history, compared through a rolling digest; promises, acceptances and votes leave a node only when its disk holds them; what a
// disk has promised never falls; a read, by lease or by read index, sees everything that was finished before it
// began, and a write comes after everything that was finished before it began, which together is linearizability, for
// slots order all operations; a lease that was handed out holds until it ends; and an acknowledged write is still there in the end.
//
// The tests run the first few hundred seeds. KOINON_SEEDS=n runs n of them, KOINON_SEED=n the n-th alone, and
// KOINON_TRACE=1 prints every event of it. KOINON_MUTATIONS=1 looks for the first seed that finds each planted mistake.
package sim
