// Package sim drives real paxos nodes through a simulated world, single-threaded and from one seed: clocks that
// drift and are far apart, disks that lose what was not synced, a network that loses, repeats, delays and reorders,
// partitions of both kinds, pauses, crashes at any point, log truncation, snapshots and damaged disks.
//
// A run has two phases. In the first faults come at random while clients write and read; safety is checked after
// every step. Then everything is healed, and the group has to make progress and to agree. The same Options give the
// same run, event by event, which Result.Hash attests.
//
// What is checked: no slot is ever applied with two values; every replica applies a contiguous prefix of one history,
// compared through a rolling digest; promises, acceptances and votes leave a node only when its disk holds them; what a
// disk has promised never falls; a read, by lease or by read index, sees everything that was finished before it
// began, and a write comes after everything that was finished before it began, which together is linearizability, for
// slots order all operations; and an acknowledged write is still there in the end.
//
// The tests run the first few hundred seeds. KOINON_SEEDS=n runs n of them, KOINON_SEED=n the n-th alone, and
// KOINON_TRACE=1 prints every event of it.
package sim
