// Package cluster knows who is in the cluster: the map of nodes and placement
// groups as a namespace of the replicated state (Machine), the service by
// which a node tells of itself (Service), and the client that finds the leader
// through any node and keeps connections to all of them (Client). Admission lets
// new machines in, and Join is how such a machine asks.
package cluster

import "github.com/koinon/koinon/internal/wire"

// Methods of this package on the wire.
const (
	MethodMap          wire.Method = 1 // MapRequest -> Map
	MethodStatus       wire.Method = 2 // StatusRequest -> StatusReply
	MethodOpenSession  wire.Method = 3 // OpenSessionRequest -> OpenSessionReply, leader only
	MethodCloseSession wire.Method = 4 // OpenSessionReply -> nothing, leader only
	MethodChange       wire.Method = 5 // Command -> Result, leader only
	MethodTokens       wire.Method = 6 // nothing -> TokensReply, leader only
	MethodJoin         wire.Method = 7 // JoinRequest -> JoinReply, also for strangers
	MethodMeet         wire.Method = 8 // Meeting -> Meeting, nodes only
)
