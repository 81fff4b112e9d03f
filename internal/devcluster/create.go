//go:build linux

package devcluster

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	"github.com/koinon/koinon/internal/auth"
	"github.com/koinon/koinon/internal/config"
	"github.com/koinon/koinon/internal/ports"
	"github.com/koinon/koinon/internal/sys"
)

// creating marks a directory in which a cluster is being made. Where it is
// left, the making was cut short and starts anew.
const creating = "creating"

// ours matches what a cluster keeps in its directory.
var ours = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^(dev\.toml|creating|lock|watch|ca|ca\.crt|client\.(toml|crt|key)|n[1-9][0-9]?|mount|mnt|\.koinon-.*)$`)
})

// checkNewDir refuses a directory that holds something else. It may be
// missing, or hold what a cut short attempt has left.
func checkNewDir(dir string) error {
	const op = sys.Op("dev up")
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return sys.E(op, sys.Subject(dir), err)
	}
	marked := false
	var other []string
	for _, e := range entries {
		switch name := e.Name(); name {
		case creating:
			marked = true
		case "lock", "watch", "mnt":
		default:
			other = append(other, name)
		}
	}
	if marked || len(other) == 0 {
		return nil
	}
	return sys.E(op, sys.NotEmpty, sys.Subject(dir),
		fmt.Sprintf("it holds %s and is no dev cluster's: choose another directory with --dir", summary(other)))
}

// summary names at most three of names.
func summary(names []string) string {
	const most = 3
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}

// create makes a new cluster in opts.Dir, whose lock the caller holds. The
// file dev.toml comes last, so a directory has a whole cluster or none.
func create(dir string, opts Options) (err error) {
	const op = sys.Op("dev up")
	defer func() {
		if err != nil && sys.KindOf(err) == sys.Other {
			err = sys.E(op, sys.Subject(dir), err)
		}
	}()
	if err := checkNewDir(dir); err != nil {
		return err
	}
	if err := removeState(dir); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, creating), nil, 0o600); err != nil {
		return err
	}
	name, err := newName()
	if err != nil {
		return err
	}
	s := saved{Format: formatVersion, Cluster: name, Nodes: opts.Nodes, Mount: opts.Mount}
	if s.Nodes == 0 {
		s.Nodes = DefaultNodes
	}
	if s.Mount == "" {
		s.Mount = filepath.Join(dir, "mnt")
	}
	if err := os.Mkdir(filepath.Join(dir, "mount"), 0o700); err != nil {
		return err
	}
	if err := writeMembers(dir, s, opts); err != nil {
		return err
	}
	if err := saveState(dir, s); err != nil {
		return err
	}
	return os.Remove(filepath.Join(dir, creating))
}

func saveState(dir string, s saved) error {
	return config.EncodeFile(filepath.Join(dir, "dev.toml"), "# A cluster made by `koinon dev up`.\n", s)
}

// newName returns a name that no other cluster has, so that a client or data
// directory of another is told.
func newName() (string, error) {
	var b [4]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", err
	}
	return "dev-" + hex.EncodeToString(b[:]), nil
}

// writeMembers makes the CA and the configuration and certificates of all
// nodes and of the client. Paths in the files are relative, so that the
// directory can be moved while the cluster is stopped.
func writeMembers(dir string, s saved, opts Options) error {
	ca, err := auth.NewCA(s.Cluster)
	if err != nil {
		return err
	}
	if err := ca.Save(filepath.Join(dir, "ca")); err != nil {
		return err
	}
	free, err := ports.Free(s.Nodes)
	if err != nil {
		return err
	}
	var voters []config.Voter
	var addrs []string
	for i, port := range free {
		voters = append(voters, config.Voter{ID: sys.NodeID(i + 1), Addr: ports.Loopback(port)})
		addrs = append(addrs, ports.Loopback(port))
	}
	for i := range voters {
		if err := writeNode(filepath.Join(dir, fmt.Sprintf("n%d", i+1)), s.Cluster, ca, voters, i, opts); err != nil {
			return err
		}
	}
	cred, err := ca.IssueClient("dev")
	if err != nil {
		return err
	}
	if err := cred.Save(dir, "client"); err != nil {
		return err
	}
	client := &config.Client{Cluster: s.Cluster, Nodes: addrs, Mount: s.Mount, Blocks: config.Engine{URL: opts.Blocks.URL},
		TLS: config.TLS{CA: "ca.crt", Cert: "client.crt", Key: "client.key"}}
	return client.Save(filepath.Join(dir, "client.toml"))
}

func writeNode(dir, cluster string, ca *auth.CA, voters []config.Voter, i int, opts Options) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	cred, err := ca.IssueNode(voters[i].ID, []string{"127.0.0.1", "localhost"})
	if err != nil {
		return err
	}
	if err := cred.Save(dir, "node"); err != nil {
		return err
	}
	n := &config.Node{
		Cluster: cluster,
		ID:      voters[i].ID,
		Dir:     "data",
		Listen:  voters[i].Addr,
		Meta:    config.Engine{URL: opts.Meta},
		Blocks:  opts.Blocks,
		TLS:     config.TLS{CA: "ca.crt", Cert: "node.crt", Key: "node.key", CAKey: CAKey},
		Log:     config.Log{Level: "info", File: "log"},
		Voters:  voters,
	}
	return n.Save(filepath.Join(dir, "node.toml"))
}

// removeState removes what a cluster keeps in dir, but for the lock. Nothing
// may be mounted below dir. A mount point is removed when it is empty only.
func removeState(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if at, err := mountedBelow(dir); err != nil {
		return err
	} else if at != "" {
		return sys.E(sys.Op("dev"), sys.Busy, sys.Subject(dir), fmt.Sprintf("%s is mounted: unmount it with `umount %s`", at, at))
	}
	// Without dev.toml and with the marker, what a crash leaves behind here is
	// taken up by the next try.
	if err := os.WriteFile(filepath.Join(dir, creating), nil, 0o600); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(dir, "dev.toml")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		name := e.Name()
		path := filepath.Join(dir, name)
		switch {
		case !ours().MatchString(name) || name == "lock" || name == "watch":
		case name == "mnt":
			// The user's own files in an unmounted mount point stay.
			if err := os.Remove(path); err != nil && !isNotEmpty(err) {
				return err
			}
		default:
			if err := os.RemoveAll(path); err != nil {
				return err
			}
		}
	}
	if err := os.Remove(filepath.Join(dir, creating)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
