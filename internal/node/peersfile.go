package node

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/koinon/koinon/internal/atomicfile"
	"github.com/koinon/koinon/internal/cluster/clusterpb"
)

// peersFile is where a node notes the addresses of the other members, one to a
// line, beside its key: who loses the directory with the data, and finds that all
// seeds have left the cluster since, asks there.
func (s *server) peersFile() string { return s.cfg.TLS.Key + ".peers" }

// notedPeers are the addresses that were noted; none when nothing was.
func (s *server) notedPeers() []string {
	raw, err := os.ReadFile(s.peersFile())
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			s.log.Warn("the noted addresses of the members cannot be read", "err", err)
		}
		return nil
	}
	return strings.Fields(string(raw))
}

// notePeers notes the addresses of m's members but this one. That it could not is
// logged, too.
func (s *server) notePeers(m *clusterpb.Map) error {
	s.meetMu.Lock()
	defer s.meetMu.Unlock()
	var addrs []string
	for _, x := range m.GetMembers() {
		if x.Id != uint64(s.cfg.ID) {
			addrs = append(addrs, x.Addr)
		}
	}
	if len(addrs) == 0 || slices.Equal(addrs, s.noted) {
		return nil // that there were others is not forgotten
	}
	if err := atomicfile.Write(s.peersFile(), []byte(strings.Join(append(addrs, ""), "\n")), 0o600); err != nil {
		s.log.Warn("the addresses of the members cannot be noted", "err", err)
		return err
	}
	s.noted = addrs
	return nil
}
