package node

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/koinon/koinon/internal/sys"
)

// errHomeless is of a node one of whose directories was removed, or is another one by now. What it goes on to write is lost, and what
// it makes, finds or deletes by a path may be another node's, or of a backup: so it must not even stop in order.
var errHomeless = errors.New("the directory was removed or replaced while the node ran, which ends it as a crash does; put the right one there, and start the node again")

// noteHomes notes which directories the node has.
func (s *server) noteHomes() error {
	s.homes = map[string]fs.FileInfo{}
	for _, name := range []string{"replica", "blocks", "proc"} {
		path := filepath.Join(s.cfg.Dir, name)
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) { // blocks are elsewhere, or no processes run here
			continue
		} else if err != nil {
			return sys.E(sys.Op("node.Serve"), err)
		}
		s.homes[path] = info
	}
	return nil
}

// checkHomes fails with errHomeless. That nothing can be told is not a reason.
func (s *server) checkHomes() error {
	for path, was := range s.homes {
		now, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(was, now) {
			return sys.E(sys.Op("node.Serve"), sys.Other, sys.Subject(path), errHomeless)
		}
	}
	return nil
}
