// Package node is the only place where parts are put together: Serve makes a
// running node of a replica host, a block store, the services over the wire
// and the duties of a leader; Connect makes a client's file system of a
// connection to the cluster, the leased view of the tree and the spread blocks.
package node
