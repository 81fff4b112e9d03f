package client

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/koinon/koinon/internal/atomicfile"
)

// lastLeader is where the leader of a cluster was when it last answered a client
// of this user: asked first, a short command needs one connection, not two. It is
// only a hint, so trouble with its file is none.
func lastLeader(clusterID string) string {
	path, err := lastLeaderPath(clusterID)
	if err != nil {
		return ""
	}
	text, err := readFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

func lastLeaderPath(clusterID string) (string, error) {
	dir, err := cacheDir()
	return filepath.Join(dir, clusterID+".leader"), err
}

// cacheDir is where hints are kept for this user's next commands.
func cacheDir() (string, error) {
	dir, err := os.UserCacheDir()
	if err == nil && !filepath.IsAbs(dir) {
		err = fmt.Errorf("the directory for caches is %q, and depends on where a command is started", dir)
	}
	return filepath.Join(dir, "koinon"), err
}

// fileMax is the most that a file of the cache has, in bytes.
const fileMax = 4 << 10

// readFile reads a small file of the cache that nobody else may read or write. One that is something else is not opened: that might
// not return.
func readFile(path string) ([]byte, error) {
	st, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Mode().Perm()&0o077 != 0 || st.Size() > fileMax {
		return nil, fmt.Errorf("%s is no small file of its owner's alone", path)
	}
	return os.ReadFile(path)
}

// noteLeader returns what keeps for the next client who leads, last being what is kept.
func noteLeader(clusterID, last string) func(addr string) {
	return func(addr string) {
		if addr != last {
			last = addr
			_ = keepLeader(clusterID, addr) // it is a hint
		}
	}
}

func keepLeader(clusterID, addr string) error {
	path, err := lastLeaderPath(clusterID)
	if err != nil {
		return err
	}
	return keepFile(path, []byte(addr+"\n"))
}

// keepFile replaces a file of this user's cache, which nobody else may read.
func keepFile(path string, content []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return atomicfile.Write(path, content, 0o600)
}

// leaderFirst orders addresses so that the last leader comes first.
func leaderFirst(last string, addrs []string) []string {
	if at := slices.Index(addrs, last); at > 0 {
		addrs = slices.Clone(addrs)
		copy(addrs[1:], addrs[:at])
		addrs[0] = last
	}
	return addrs
}
