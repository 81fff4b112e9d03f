package node

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/koinon/koinon/internal/cluster"
)

// lastLeader is where the leader of a cluster was when a client of this user
// last left: asked first, a short command needs one connection, not two. It is
// only a hint, so trouble with its file is none.
func lastLeader(clusterID string) string {
	path, err := lastLeaderPath(clusterID)
	if err != nil {
		return ""
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

func lastLeaderPath(clusterID string) (string, error) {
	dir, err := os.UserCacheDir()
	return filepath.Join(dir, "koinon", clusterID+".leader"), err
}

// leave ends a client's connections, and keeps for the next one who led.
func leave(cc *cluster.Client) error {
	id, addr := cc.Cluster(), cc.LeaderAddr()
	if addr != "" && addr != lastLeader(id) {
		_ = keepLeader(id, addr) // it is a hint
	}
	return cc.Close()
}

func keepLeader(clusterID, addr string) error {
	path, err := lastLeaderPath(clusterID)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".leader-")
	if err != nil {
		return err
	}
	_, err = f.WriteString(addr + "\n")
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// leaderFirst orders addresses so that the last leader comes first.
func leaderFirst(clusterID string, addrs []string) []string {
	last := lastLeader(clusterID)
	if at := slices.Index(addrs, last); at > 0 {
		addrs = slices.Clone(addrs)
		copy(addrs[1:], addrs[:at])
		addrs[0] = last
	}
	return addrs
}
