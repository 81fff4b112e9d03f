// Package cluster knows who is in the cluster: the map of nodes and placement
// groups as a namespace of the replicated state (Machine), the service by
// which a node tells of itself (Service), and the client that finds the leader
// through any node and keeps connections to all of them (Client).
package cluster

import "github.com/koinon/koinon/internal/wire"

// Methods of this package on the wire.
const (
	MethodMap          wire.Method = 1 // MapRequest -> Map
	MethodStatus       wire.Method = 2 // StatusRequest -> StatusReply
	MethodOpenSession  wire.Method = 3 // OpenSessionRequest -> OpenSessionReply, leader only
	MethodCloseSession wire.Method = 4 // OpenSessionReply -> nothing, leader only
	MethodAnnounce     wire.Method = 5 // AnnounceRequest -> Result, leader only, from nodes
)
