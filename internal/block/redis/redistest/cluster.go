package redistest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Cluster is a Redis Cluster: three masters, each with a replica.
type Cluster struct {
	Servers []*Server
	tb      testing.TB
}

// nodeTimeout is after how many milliseconds the others take a server for lost.
const nodeTimeout = "1000"

// StartCluster runs a Redis Cluster of six until the test ends.
func StartCluster(tb testing.TB, args ...string) *Cluster {
	tb.Helper()
	c := &Cluster{tb: tb}
	create := []string{"--cluster", "create"}
	for range 6 {
		s := Start(tb, append([]string{"--cluster-enabled", "yes", "--cluster-node-timeout", nodeTimeout, "--cluster-replica-validity-factor", "0",
			"--repl-diskless-sync-delay", "0"}, args...)...)
		c.Servers = append(c.Servers, s)
		create = append(create, s.Addr())
	}
	c.Servers[0].CLI(append(create, "--cluster-replicas", "1", "--cluster-yes")...)
	for _, s := range c.Servers {
		s.await("cluster_state:ok", "CLUSTER", "INFO")
		s.await("cluster_known_nodes:6", "CLUSTER", "INFO")
	}
	for _, m := range c.Masters() {
		m.await("state=online", "INFO", "replication")
	}
	return c
}

// URL names the cluster by three of its servers.
func (c *Cluster) URL() string {
	return fmt.Sprintf("redis+cluster://:%s@%s,%s,%s", Coded, c.Servers[0].Addr(), c.Servers[1].Addr(), c.Servers[2].Addr())
}

// Masters are the servers that run and say that they are masters.
func (c *Cluster) Masters() []*Server {
	c.tb.Helper()
	var all []*Server
	for _, s := range c.Servers {
		if s.cmd != nil && strings.Contains(s.CLI("INFO", "replication"), "role:master") {
			all = append(all, s)
		}
	}
	return all
}

// AwaitMasters returns when so many of the servers that run are masters.
func (c *Cluster) AwaitMasters(n int) {
	c.tb.Helper()
	for end := time.Now().Add(startWait); len(c.Masters()) != n; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			c.tb.Fatalf("expected %d masters, found %d", n, len(c.Masters()))
		}
	}
}

// Sentinel is a master and a replica, watched by three Sentinels.
type Sentinel struct {
	Master, Replica *Server
	sentinels       []*Server
}

// StartSentinel runs them until the test ends.
func StartSentinel(tb testing.TB) *Sentinel {
	tb.Helper()
	s := &Sentinel{Master: Start(tb, "--repl-diskless-sync-delay", "0")}
	s.Replica = Start(tb, "--repl-diskless-sync-delay", "0", "--replicaof", fmt.Sprintf("127.0.0.1 %d", s.Master.Port))
	s.Master.await("state=online", "INFO", "replication")
	for range 3 {
		w := newServer(tb)
		conf := filepath.Join(w.dir, "sentinel.conf")
		text := fmt.Sprintf("port %d\nbind 127.0.0.1\ndir %s\nlogfile %s\nrequirepass %s\nsentinel monitor koinon 127.0.0.1 %d 2\n"+
			"sentinel auth-pass koinon %s\nsentinel sentinel-pass %s\nsentinel down-after-milliseconds koinon 1000\nsentinel failover-timeout koinon 5000\n",
			w.Port, w.dir, filepath.Join(w.dir, "log"), Password, s.Master.Port, Password, Password)
		if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
			tb.Fatal(err)
		}
		w.run(exec.Command("redis-server", conf, "--sentinel"))
		w.await("PONG", "PING")
		s.sentinels = append(s.sentinels, w)
	}
	for _, w := range s.sentinels {
		w.await("num-other-sentinels\n2", "SENTINEL", "MASTER", "koinon")
		w.await("num-slaves\n1", "SENTINEL", "MASTER", "koinon")
	}
	return s
}

// URL leads to the master through the Sentinels.
func (s *Sentinel) URL() string {
	var addrs []string
	for _, w := range s.sentinels {
		addrs = append(addrs, w.Addr())
	}
	return fmt.Sprintf("redis+sentinel://:%s@%s/koinon/0?sentinel-password=%s", Coded, strings.Join(addrs, ","), Coded)
}

// AwaitFailover returns when the replica has become master.
func (s *Sentinel) AwaitFailover() { s.Replica.await("role:master", "INFO", "replication") }

// AwaitRole returns when a server says that it is a master or a slave.
func (s *Server) AwaitRole(role string) { s.await("role:"+role, "INFO", "replication") }
