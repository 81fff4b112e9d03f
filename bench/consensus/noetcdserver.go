//go:build !etcdserver

package main

import "errors"

// hasServers says that this program can measure etcdServers: their client is
// large, so only one that is built with a tag can.
const hasServers = false

var errNoServers = errors.New("-arms: etcd-server needs a program that was built with -tags etcdserver, as by make bench-consensus")

// startServers would start etcdServers.
func startServers(string) (replicated, error) { return nil, errNoServers }
