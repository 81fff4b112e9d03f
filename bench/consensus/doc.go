// Command consensus measures replicated logs beside one another: Koinon's own,
// hashicorp/raft with its WAL store, and go.etcd.io/raft/v3 driven as its
// documentation says. Each runs as three replicas in three processes over
// loopback, with mutual TLS and with a sync before anything is acknowledged.
// Built with -tags etcdserver it measures three servers of etcd too, through
// their own client.
//
// Rounds are interleaved: a round starts each library's cluster anew, drives
// it at every depth, proves that its replicas have applied the same commands,
// and stops it. What is printed are medians over rounds.
//
// It is a module of its own, so that the peers stay out of Koinon's graph.
package main
