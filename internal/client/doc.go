// Package client reaches a cluster from outside, as its configuration for clients
// says: Connect makes a file system of a connection to the cluster, the leased view
// of the tree and the spread blocks; the others are for one service each. Nothing of
// a node is linked with it.
package client
