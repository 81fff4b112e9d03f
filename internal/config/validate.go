package config

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/koinon/koinon/internal/sys"
)

// isWord says that s is made of at most so many letters, digits and marks, and
// begins with a letter or a digit. A regular expression for it would take each
// start of the program a while.
func isWord(s string, most int, marks string) bool {
	for i, c := range []byte(s) {
		alnum := '0' <= c && c <= '9' || 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z'
		if !alnum && (i == 0 || strings.IndexByte(marks, c) < 0) {
			return false
		}
	}
	return s != "" && len(s) <= most
}

// clusterName says whether a cluster may be called so: the name stands in
// certificates and in names of files.
func clusterName(s string) bool { return isWord(s, 64, "._-") }

// maxReplicas bounds the copies of a block.
const maxReplicas = 9

// Validate checks a node's configuration after SetDefaults. The error is of
// kind Invalid, names the key and says what to put there.
func (n *Node) Validate() error {
	return firstProblem(
		func() string { return checkCluster(n.Cluster) },
		func() string {
			return checkID("id", n.ID)
		},
		func() string {
			if n.Dir == "" {
				return `"dir" is missing: give the directory where the node keeps its data`
			}
			return ""
		},
		func() string { return checkAddr("listen", n.Listen, true) },
		func() string {
			if n.Metrics == "" {
				return ""
			}
			return checkAddr("metrics", n.Metrics, true)
		},
		n.checkVoters,
		n.checkAdvertise,
		func() string {
			if n.Replicas < 1 || n.Replicas > maxReplicas {
				return fmt.Sprintf(`"replicas" is %d: give how many nodes keep each block, 1 to %d`, n.Replicas, maxReplicas)
			}
			return ""
		},
		func() string {
			if n.Retention < LeastRetention {
				return fmt.Sprintf(`"retention" is %v: give %v or more, like "10m": files that are open and removed must outlive a short outage`, n.Retention, LeastRetention)
			}
			return ""
		},
		n.TLS.check,
		n.Log.check,
		n.Proc.check,
	)
}

// labelWord says whether a key or a value of a label may be so.
func labelWord(s string) bool { return isWord(s, 63, "._/-") }

// cpusMax bounds what a node says that it has.
const cpusMax = 1 << 16

func (p Proc) check() string {
	if !(p.CPUs >= 0 && p.CPUs <= cpusMax) {
		return fmt.Sprintf(`"proc.cpus" is %v: give how many CPUs processes may use, like 1.5, or leave it out for all`, p.CPUs)
	}
	if p.CPUs > 0 && p.CPUs < 0.001 {
		return fmt.Sprintf(`"proc.cpus" is %v: give at least 0.001, or "off = true" to keep processes away`, p.CPUs)
	}
	for _, k := range slices.Sorted(maps.Keys(p.Labels)) {
		if v := p.Labels[k]; !labelWord(k) || !labelWord(v) {
			return fmt.Sprintf(`"proc.labels" has %q = %q: use 1 to 63 letters, digits, '.', '_', '/' and '-' for each, the first a letter or a digit`, k, v)
		}
	}
	return ""
}

// Validate checks a client's configuration after SetDefaults, as Node's does.
func (c *Client) Validate() error {
	return firstProblem(
		func() string { return checkCluster(c.Cluster) },
		func() string {
			if len(c.Nodes) == 0 {
				return `"nodes" is missing: give the address of at least one node, like ["10.0.0.1:7400"]`
			}
			for i, addr := range c.Nodes {
				if p := checkAddr(fmt.Sprintf("nodes[%d]", i), addr, false); p != "" {
					return p
				}
			}
			return ""
		},
		func() string {
			if c.Timeout < 0 {
				return fmt.Sprintf(`"timeout" is %v: give a time that is not negative, like "60s"`, c.Timeout)
			}
			return ""
		},
		c.TLS.check,
		func() string {
			if c.TLS.CAKey != "" {
				return `"tls.ca_key" is for nodes: take it out, a client needs no more than its own key`
			}
			return ""
		},
		c.Log.check,
	)
}

// firstProblem runs the checks in order and returns the first that has
// something to say, as an error.
func firstProblem(checks ...func() string) error {
	for _, check := range checks {
		if p := check(); p != "" {
			return sys.E(sys.Invalid, p)
		}
	}
	return nil
}

// maxID is the highest number that a node may have. The decoder turns a
// negative number into one above it.
const maxID = 1 << 31

func checkID(key string, id sys.NodeID) string {
	switch {
	case id == 0:
		return fmt.Sprintf("%q is missing: give the node's number in the cluster, 1 or more", key)
	case id > maxID:
		return fmt.Sprintf("%q is %d: give the node's number in the cluster, 1 to %d", key, int64(id), maxID)
	}
	return ""
}

func checkCluster(name string) string {
	switch {
	case name == "":
		return `"cluster" is missing: give the cluster's name, the same on all its nodes`
	case !clusterName(name):
		return fmt.Sprintf(`"cluster" is %q: use 1 to 64 letters, digits, '.', '_' and '-', the first a letter or a digit`, name)
	}
	return ""
}

// checkAddr checks host:port. Any interface (an empty host, 0.0.0.0, ::) is
// good only to listen on.
func checkAddr(key, addr string, listen bool) string {
	if addr == "" {
		return fmt.Sprintf(`%q is missing: give an address as host:port, like "127.0.0.1:7400"`, key)
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Sprintf(`%q is %q: write the address as host:port, like "127.0.0.1:7400"`, key, addr)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Sprintf(`%q is %q: the port must be a number from 1 to 65535`, key, addr)
	}
	if ip := net.ParseIP(host); !listen && (host == "" || ip != nil && ip.IsUnspecified()) {
		return fmt.Sprintf(`%q is %q: nobody can connect to that; give the host's name or address`, key, addr)
	}
	return ""
}

func (n *Node) checkVoters() string {
	switch {
	case len(n.Voters) > 0 && len(n.Seeds) > 0:
		return `"voters" and "seeds" exclude each other: a node that makes the cluster lists the voters, one that has joined it the seeds`
	case len(n.Seeds) > 0:
		for i, addr := range n.Seeds {
			if p := checkAddr(fmt.Sprintf("seeds[%d]", i), addr, false); p != "" {
				return p
			}
		}
		return ""
	case len(n.Voters) == 0:
		return `"voters" is missing: list the nodes that vote, each as [[voters]] with "id" and "addr"; or join a cluster with "koinon serve --join"`
	}
	ids := make(map[sys.NodeID]bool, len(n.Voters))
	addrs := make(map[string]bool, len(n.Voters))
	for i, v := range n.Voters {
		if p := checkID(fmt.Sprintf("voters[%d].id", i), v.ID); p != "" {
			return p
		}
		if p := checkAddr(fmt.Sprintf("voters[%d].addr", i), v.Addr, false); p != "" {
			return p
		}
		if ids[v.ID] {
			return fmt.Sprintf(`"voters[%d].id" is %d, which an earlier voter has: give each its own`, i, v.ID)
		}
		if addrs[v.Addr] {
			return fmt.Sprintf(`"voters[%d].addr" is %q, which an earlier voter has: give each its own`, i, v.Addr)
		}
		ids[v.ID], addrs[v.Addr] = true, true
	}
	if !ids[n.ID] {
		return fmt.Sprintf(`"voters" does not list this node (id %d): add it as [[voters]] on every node`, n.ID)
	}
	return ""
}

func (n *Node) checkAdvertise() string {
	if p := checkAddr("advertise", n.Advertise, false); p != "" {
		return p
	}
	if want := n.voterAddr(n.ID); !n.Joined() && n.Advertise != want {
		return fmt.Sprintf(`"advertise" is %q but "voters" says that node %d is at %q: make them the same, or leave "advertise" out`,
			n.Advertise, n.ID, want)
	}
	return ""
}

func (t TLS) check() string {
	for _, f := range []struct{ key, value, what string }{
		{"tls.ca", t.CA, "the certificate of the cluster's CA"},
		{"tls.cert", t.Cert, "the certificate of this process"},
		{"tls.key", t.Key, "the private key of this process"},
	} {
		if f.value == "" {
			return fmt.Sprintf("%q is missing: give the PEM file with %s; every connection is mutual TLS", f.key, f.what)
		}
	}
	return ""
}

func (l Log) check() string {
	switch l.Level {
	case "debug", "info", "warn", "error":
		return ""
	}
	return fmt.Sprintf(`"log.level" is %q: use debug, info, warn or error`, l.Level)
}
