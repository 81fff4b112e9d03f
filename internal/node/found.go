package node

import (
	"cmp"
	"net"
	"path/filepath"

	"github.com/koinon/koinon/internal/auth"
	"github.com/koinon/koinon/internal/config"
	"github.com/koinon/koinon/internal/sys"
)

// FoundOptions say what cluster to make. Cluster, Dir and Listen are required.
type FoundOptions struct {
	Cluster   string
	Dir       string
	Listen    string
	Advertise string // empty: Listen, which then must have a host
	Zone      string
}

// founder is the number of the node that makes a cluster.
const founder sys.NodeID = 1

// Found writes what the first node of a new cluster needs into an empty
// directory: the cluster's CA, the node's and a client's certificates and
// configurations. The node makes the cluster when it first runs; others join.
func Found(o FoundOptions) error {
	n := &config.Node{Cluster: o.Cluster, ID: founder, Dir: "data", Listen: o.Listen, Zone: o.Zone, Replicas: config.DefaultReplicas,
		TLS:    config.TLS{CA: auth.CACertFile, Cert: nodeFiles + ".crt", Key: nodeFiles + ".key", CAKey: filepath.Join("ca", auth.CAKeyFile)},
		Voters: []config.Voter{{ID: founder, Addr: cmp.Or(o.Advertise, o.Listen)}}}
	c := &config.Client{Cluster: o.Cluster, Nodes: []string{n.Voters[0].Addr},
		TLS: config.TLS{CA: auth.CACertFile, Cert: "client.crt", Key: "client.key"}}
	whole := *n
	whole.SetDefaults()
	if err := whole.Validate(); err != nil {
		return err
	}
	if err := checkFresh(o.Dir); err != nil {
		return err
	}
	ca, err := auth.NewCA(o.Cluster)
	if err != nil {
		return err
	}
	if err := ca.Save(filepath.Join(o.Dir, "ca")); err != nil {
		return err
	}
	host, _, err := net.SplitHostPort(n.Voters[0].Addr)
	if err != nil {
		return err
	}
	cred, err := ca.IssueNode(founder, []string{host})
	if err != nil {
		return err
	}
	if err := cred.Save(o.Dir, nodeFiles); err != nil {
		return err
	}
	if cred, err = ca.IssueClient("admin"); err != nil {
		return err
	}
	if err := cred.Save(o.Dir, "client"); err != nil {
		return err
	}
	if err := c.Save(filepath.Join(o.Dir, "client.toml")); err != nil {
		return err
	}
	return n.Save(filepath.Join(o.Dir, nodeFile))
}
