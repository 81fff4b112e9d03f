// Package block keeps immutable runs of bytes under keys that are never used
// twice. It declares the Store that the tree's client half writes to, the
// checksums that travel with every block from the writer to the reader, a
// store in memory, and Retried, which repeats what fails for want of nodes.
// The engines are in the packages below: disk keeps blocks in segments on a
// local disk, spread places them on the nodes of a cluster.
//
// Because a key never means other bytes, blocks are copied, cached, healed and
// compared without any coordination.
package block
