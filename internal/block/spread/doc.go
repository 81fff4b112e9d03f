// Package spread keeps blocks on the nodes of a cluster.
//
// Store is the client: a block.Store that sends each block to all nodes of its
// placement group, reads from the nearest one that has it, and checks every
// byte against the sums that the writer made. Server is a node's half: it
// answers over an Engine, usually disk.Store. Healer fetches what a node
// should have and lacks, Scrubber reads everything now and then and repairs
// what has rotted.
//
// Life of a Put: the sums are computed, the bytes go to all replicas at once,
// and Put returns when a write quorum has them and the others have had a
// moment. A node that is down, slow or failed to take the block is noted, and
// asked later to fetch it from its peers. Sync asks the nodes to make whole
// slices durable; a node's answer names the blocks that it holds, so a node
// that lost them in a crash between Put and Sync cannot pass for one that has
// them.
package spread
