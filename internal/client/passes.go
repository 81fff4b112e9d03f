package client

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/koinon/koinon/internal/auth"
	"github.com/koinon/koinon/internal/wire"
)

// passes keeps passes (wire.Passes) for this user's next commands, in a file for each address. The file's name depends on the
// credentials, so that who has other ones, or none any more, does not find it. Trouble with a file is as if there were none.
type passes struct {
	dir         string
	cluster     string
	credentials [sha256.Size]byte
}

// passFileLife is for how long a file is left alone after it was written: longer than a pass is of use.
const passFileLife = 24 * time.Hour

// newPasses keeps passes of who shows these files to a cluster.
func newPasses(cluster string, files *auth.Files) (*passes, error) {
	dir, err := cacheDir()
	return &passes{filepath.Join(dir, "passes"), cluster, files.Digest()}, err
}

func (p *passes) path(addr string) string {
	name := sha256.Sum256(fmt.Appendf(p.credentials[:], "%s at %s", p.cluster, addr))
	return filepath.Join(p.dir, hex.EncodeToString(name[:16]))
}

// any reports whether there is a pass for one of the addresses that may be of use.
func (p *passes) any(addrs []string) bool {
	now := time.Now()
	return slices.ContainsFunc(addrs, func(a string) bool { return wire.PassIsValid(p.Pass(a), now) })
}

// Pass implements wire.Passes.
func (p *passes) Pass(addr string) []byte {
	b, err := readFile(p.path(addr))
	if err != nil {
		return nil
	}
	return b
}

// Keep implements wire.Passes.
func (p *passes) Keep(addr string, pass []byte) {
	if pass == nil {
		_ = os.Remove(p.path(addr)) // else it is tried in vain again
		return
	}
	if keepFile(p.path(addr), pass) != nil {
		return
	}
	// Addresses of clusters that are gone are not asked for any more.
	entries, err := os.ReadDir(p.dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && old(info) {
			_ = os.Remove(filepath.Join(p.dir, e.Name())) // or somebody else has
		}
	}
}

func old(info fs.FileInfo) bool {
	return info.Mode().IsRegular() && time.Since(info.ModTime()) > passFileLife
}
