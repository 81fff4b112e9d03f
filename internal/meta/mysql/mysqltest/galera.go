package mysqltest

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

// galeraLibrary is where Debian's galera-4 puts it.
const galeraLibrary = "/usr/lib/galera/libgalera_smm.so"

// Galera is a Galera cluster of three servers, each of which holds everything
// and takes writes.
type Galera struct{ Servers []*Server }

// StartGalera runs a cluster until the test ends. A server that does not answer
// the others for a second is left behind by them.
func StartGalera(tb testing.TB) *Galera {
	tb.Helper()
	g := &Galera{}
	ports := make([]string, 3)
	for i := range ports {
		ports[i] = fmt.Sprintf("127.0.0.1:%d", FreePort(tb))
	}
	for _, port := range ports {
		dir, err := os.MkdirTemp("", "mysqltest")
		if err != nil {
			tb.Fatal(err)
		}
		g.Servers = append(g.Servers, newServer(tb, dir, []string{
			"--wsrep-on=ON", "--wsrep-provider=" + galeraLibrary, "--binlog-format=ROW", "--innodb-autoinc-lock-mode=2",
			"--wsrep-cluster-name=koinon", "--wsrep-cluster-address=gcomm://" + strings.Join(ports, ","), "--wsrep-node-address=" + port,
			fmt.Sprintf("--wsrep-sst-receive-address=127.0.0.1:%d", FreePort(tb)),
			"--wsrep-provider-options=gmcast.listen_addr=tcp://" + port + fmt.Sprintf(";ist.recv_addr=127.0.0.1:%d", FreePort(tb)) +
				";gcache.size=32M;evs.keepalive_period=PT0.2S;evs.inactive_check_period=PT0.2S;evs.suspect_timeout=PT1S;evs.inactive_timeout=PT3S;evs.install_timeout=PT3S",
		}))
	}
	for i, s := range g.Servers {
		if i == 0 {
			s.install()
		} else if err := os.Mkdir(s.data(), 0o700); err != nil {
			tb.Fatal(err)
		}
		if os.Getuid() == 0 { // rsync, which fills the other servers, does not run as root
			if out, err := exec.Command("chown", "-R", "mysql", s.dir).CombinedOutput(); err != nil {
				tb.Fatalf("chown: %v\n%s", err, out)
			}
			s.user = "mysql"
		}
		together := s.flags
		if i == 0 {
			s.flags = append(slices.Clone(together), "--wsrep-new-cluster")
		}
		s.Restart()
		s.flags = together
		if i == 0 {
			s.root(grant)
		}
	}
	g.Await(tb)
	return g
}

// Await polls until each server takes statements and is in step with all
// others, at once: one that fills another is out of step again.
func (g *Galera) Await(tb testing.TB) {
	tb.Helper()
	for end := time.Now().Add(startWait); ; time.Sleep(50 * time.Millisecond) {
		together := true
		for _, s := range g.Servers {
			if state := s.wsrep(); state != fmt.Sprintf("ON Synced %d", len(g.Servers)) {
				together = false
				if time.Now().After(end) {
					tb.Fatalf("the server is %q\n%s", state, s.Log())
				}
			}
		}
		if together {
			return
		}
	}
}

// wsrep is whether the server takes statements, its state, and how many servers
// it sees.
func (s *Server) wsrep() string {
	db := s.open("koinon", Password, "")
	defer func() { _ = db.Close() }() // it may be on its way up
	var words []string
	for _, name := range []string{"wsrep_ready", "wsrep_local_state_comment", "wsrep_cluster_size"} {
		var value string
		if err := db.QueryRow("SHOW STATUS LIKE '"+name+"'").Scan(&name, &value); err != nil {
			return err.Error()
		}
		words = append(words, value)
	}
	return strings.Join(words, " ")
}

// URL names a database by all servers of the cluster.
func (g *Galera) URL(database string) string {
	hosts := make([]string, len(g.Servers))
	for i, s := range g.Servers {
		hosts[i] = fmt.Sprintf("127.0.0.1:%d", s.Port)
	}
	return fmt.Sprintf("mysql://koinon:%s@%s/%s", Coded, strings.Join(hosts, ","), database)
}

// Create makes an empty database and returns its URL.
func (g *Galera) Create(tb testing.TB, database string) string {
	tb.Helper()
	g.Servers[0].Create(tb, database)
	return g.URL(database)
}
