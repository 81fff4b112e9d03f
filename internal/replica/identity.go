package replica

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/koinon/koinon/internal/env/envfs"
	"github.com/koinon/koinon/internal/sys"
)

// format is the number of the layout of a host's directory.
const format = 1

// versionFile is the name of the file that says whose directory it is. It is
// text, so that a person who finds the directory can read it.
const versionFile = "VERSION"

// diskCategory names the host's own small files in Pebble's statistics.
const diskCategory vfs.DiskWriteCategory = "koinon-replica"

// identity is what the file says.
type identity struct {
	format  int
	cluster string
	node    sys.NodeID
	members map[sys.GroupID]uint64 // of a mark: first slot of the newest configuration known to be in force
}

func (id identity) encode() []byte {
	b := fmt.Appendf(nil, "koinon replica\nformat %d\ncluster %s\nnode %d\n",
		id.format, strconv.Quote(id.cluster), uint64(id.node))
	for _, g := range slices.Sorted(maps.Keys(id.members)) {
		b = fmt.Appendf(b, "members %d %d\n", uint64(g), id.members[g])
	}
	return b
}

func decodeIdentity(b []byte) (id identity, err error) {
	sc := bufio.NewScanner(bytes.NewReader(b))
	if !sc.Scan() || sc.Text() != "koinon replica" {
		return id, errors.New("it does not start with \"koinon replica\"")
	}
	for sc.Scan() {
		key, value, _ := strings.Cut(sc.Text(), " ")
		switch key {
		case "format":
			id.format, err = strconv.Atoi(value)
		case "cluster":
			id.cluster, err = strconv.Unquote(value)
		case "node":
			var n uint64
			n, err = strconv.ParseUint(value, 10, 64)
			id.node = sys.NodeID(n)
		case "members":
			var g, from uint64
			if _, err = fmt.Sscanf(value, "%d %d", &g, &from); err == nil {
				if id.members == nil {
					id.members = map[sys.GroupID]uint64{}
				}
				id.members[sys.GroupID(g)] = from
			}
		}
		if err != nil {
			return id, fmt.Errorf("line %q: %w", sc.Text(), err)
		}
	}
	if id.format == 0 || id.node == 0 {
		return id, errors.New("format or node is missing")
	}
	return id, sc.Err()
}

// lockDir makes sure that one process uses the directory.
func lockDir(fs envfs.FS, dir string) (io.Closer, error) {
	const op = sys.Op("replica.Open")
	if err := fs.MkdirAll(dir, 0o700); err != nil {
		return nil, sys.E(op, sys.Subject(dir), err)
	}
	lock, err := fs.Lock(fs.PathJoin(dir, "LOCK"))
	if err != nil {
		return nil, sys.E(op, sys.Busy, sys.Subject(dir), fmt.Errorf(
			"the directory is in use by another koinon: stop that one, or give this one a directory of its own (%w)", err))
	}
	return lock, nil
}

// checkIdentity compares the directory's identity with the configuration. It
// is false when the directory has none yet.
func checkIdentity(cfg *Config) (exists bool, err error) {
	const op = sys.Op("replica.Open")
	subject := sys.Subject(cfg.Dir)
	b, err := readFile(cfg.FS, cfg.FS.PathJoin(cfg.Dir, versionFile))
	if err != nil || b == nil {
		return false, err
	}
	id, err := decodeIdentity(b)
	switch {
	case err != nil:
		return false, sys.E(op, sys.Corrupt, subject, fmt.Errorf(
			"%s is not readable (%w): restore it, or move the directory away and let the node rejoin", versionFile, err))
	case id.format > format:
		return false, sys.E(op, sys.NotSupported, subject, fmt.Sprintf(
			"the directory has format %d and this program knows up to %d: run the newer koinon again", id.format, format))
	case id.cluster != cfg.Cluster:
		return false, sys.E(op, sys.Invalid, subject, fmt.Sprintf(
			"the directory belongs to cluster %q and not to %q: give this node another directory, or move this one away", id.cluster, cfg.Cluster))
	case id.node != cfg.Self:
		return false, sys.E(op, sys.Invalid, subject, fmt.Sprintf(
			"the directory belongs to node %v and not to %v: start that node here, or give this one its own directory", id.node, cfg.Self))
	}
	return true, nil
}

// writeIdentity makes the directory this node's, durably.
func writeIdentity(cfg *Config) error {
	fs := cfg.FS
	err := writeFile(fs, fs.PathJoin(cfg.Dir, versionFile), identity{format: format, cluster: cfg.Cluster, node: cfg.Self}.encode())
	if err != nil {
		return err
	}
	return syncDir(fs, fs.PathDir(cfg.Dir))
}

// writeFile puts a small file in the place of a former one, durably.
func writeFile(fs envfs.FS, name string, b []byte) error {
	tmp := name + ".tmp"
	f, err := fs.Create(tmp, diskCategory)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := fs.Rename(tmp, name); err != nil {
		return err
	}
	return syncDir(fs, fs.PathDir(name))
}

func syncDir(fs envfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// readFile returns a small file's bytes, nil when it does not exist.
func readFile(fs envfs.FS, name string) ([]byte, error) {
	if _, err := fs.Stat(name); err != nil {
		if isNotExist(err) {
			return nil, nil
		}
		return nil, err
	}
	f, err := fs.Open(name)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, 1<<20))
	return b, errors.Join(err, f.Close())
}
