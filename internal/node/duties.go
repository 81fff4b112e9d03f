package node

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/koinon/koinon/internal/block/spread"
	"github.com/koinon/koinon/internal/client"
	"github.com/koinon/koinon/internal/cluster"
	"github.com/koinon/koinon/internal/cluster/clusterpb"
	"github.com/koinon/koinon/internal/collect"
	"github.com/koinon/koinon/internal/env/envfs"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/proc"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/wire"
)

// placementGroups is how many a new cluster has.
const placementGroups = 256

// found makes a new cluster: its map and its empty tree. It does nothing to one
// that has them.
func (s *server) found(ctx context.Context) error {
	if s.peers.Map() != nil {
		return nil
	}
	members, now := make([]*clusterpb.Member, 0, len(s.cfg.Voters)), s.clock.Wall().UnixNano()
	for _, v := range s.cfg.Voters {
		members = append(members, &clusterpb.Member{Id: uint64(v.ID), Addr: v.Addr, Weight: 1, JoinedNs: now})
	}
	m, err := s.firstMap(ctx, members)
	if err != nil {
		return err
	}
	if err := s.tree.Adopt(ctx); err != nil {
		return err
	}
	if _, err := s.tree.Do(ctx, &metapb.Command{Op: &metapb.Command_Format{Format: &metapb.Format{RetentionNs: int64(s.cfg.Retention)}}}); err != nil {
		return err
	}
	body := pb.Marshal(&clusterpb.Command{Map: m})
	if _, _, err := s.group.Propose(ctx, rsm.Command{NS: rsm.NSCluster, Body: body}); err != nil {
		return err
	}
	s.log.Info("a new cluster", "cluster", s.cfg.Cluster, "nodes", len(members), "replicas", s.cfg.Replicas)
	return s.followMap()
}

// firstMap is the map of a new cluster. With blocks in Redis it makes the store
// the cluster's own first.
func (s *server) firstMap(ctx context.Context, members []*clusterpb.Member) (*clusterpb.Map, error) {
	if s.redis == nil {
		return cluster.First(s.cfg.Cluster, members, placementGroups, s.cfg.Replicas)
	}
	if err := s.redis.store.Claim(ctx); err != nil {
		return nil, err
	}
	return cluster.FirstElsewhere(s.cfg.Cluster, members, placementGroups, s.redis.store.String()), nil
}

// dialer connects to a peer of the log: in turn where the configuration and
// where the map has it, either of which may be out of date.
func (s *server) dialer(id sys.NodeID) func(ctx context.Context, addr string) (net.Conn, error) {
	var tries atomic.Uint32
	return func(ctx context.Context, addr string) (net.Conn, error) {
		if at := s.peers.Addr(id); at != "" && tries.Add(1)%2 == 1 {
			addr = at
		}
		return wire.Dial(ctx, addr)
	}
}

// collect runs one round of the collector. led is for how long this node has
// led: while there was no leader clients could not say which files they have
// open, so the quarantine is left alone until each could.
func (s *server) collect(ctx context.Context, led time.Duration) {
	if err := s.tree.Tidy(ctx); err != nil && ctx.Err() == nil {
		s.log.Info("what sessions have left stays for now", "err", err)
	}
	viewed, err := s.tree.Viewed()
	if err != nil {
		s.log.Error("a view of the tree cannot be closed", "err", err)
	}
	if viewed {
		return // somebody checks that every block is there
	}
	keep, _, err := client.Terms(ctx, s.tree)
	if err != nil {
		s.log.Info("collection goes on later", "err", err)
		return
	}
	c := collect.Collector{Tree: s.tree, Blocks: s.store(), Clock: s.clock, Logger: s.log, Grace: blockGrace, PGs: len(s.peers.Table().PGs), Hold: led < keep}
	done, err := c.Run(ctx)
	if err != nil && ctx.Err() == nil {
		s.log.Info("collection goes on later", "err", err)
	}
	if done != (collect.Done{}) {
		s.log.Info("collected", "steps", done.Steps, "rows", done.Rows, "blocks", done.Keys)
	}
}

// status tells of this node.
func (s *server) status() *clusterpb.StatusReply {
	st := s.group.Status()
	role := st.Role.String()
	if !st.Voter && st.Role == rsm.Follower {
		role = "learner"
	}
	r := &clusterpb.StatusReply{
		Node: uint64(s.cfg.ID), Cluster: s.cfg.Cluster, Version: s.version, Leader: uint64(st.Leader), Role: role,
		BallotRound: st.BallotRound, Chosen: st.Chosen, Applied: st.Applied, Truncated: st.Truncated,
		StartedNs: s.started.UnixNano(), Proposals: st.Proposals, Entries: st.Entries, Syncs: st.LogSyncs, LogBytes: st.LogBytes,
		Epoch: s.peers.Map().GetEpoch(), ResidentBytes: resident(), CaKey: s.ca != nil,
	}
	if s.database != nil {
		r.MetaStore = s.database.String()
	}
	for _, id := range st.Voters {
		r.Voters = append(r.Voters, uint64(id))
	}
	for _, p := range st.Peers {
		r.Lags = append(r.Lags, &clusterpb.PeerLag{Node: uint64(p.ID), Slots: p.Lag, Reachable: p.Reachable,
			Snapshot: p.Snapshot, LastSeenNs: int64(p.LastSeen)})
	}
	r.Load = logLoad(&st)
	var trouble []string
	if st.Damaged != "" {
		trouble = append(trouble, st.Damaged)
	}
	if st.NoSpace {
		trouble = append(trouble, s.fullDisk())
	}
	// Half of what the least patient, `dev status`, gives a node to answer.
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	if t := s.tree.Trouble(ctx, s.peers.Map() != nil); t != "" {
		trouble = append(trouble, t)
	}
	if t := s.blocksStatus(r); t != "" {
		trouble = append(trouble, t)
	}
	if t := s.processes.trouble(); t != "" {
		trouble = append(trouble, t)
	}
	var err error
	if r.NoProcesses, err = proc.Drained(s.group, s.cfg.ID); err != nil {
		trouble = append(trouble, err.Error())
	}
	r.Trouble = strings.Join(trouble, "; ")
	return r
}

// fullDisk says what ends that the disk is full, which nothing may on one that is
// smaller than what is to be free.
func (s *server) fullDisk() string {
	need := uint64(s.cfg.Limits.MinFree) / 2
	if u, err := envfs.Disk.GetDiskUsage(s.cfg.Dir); err == nil && u.TotalBytes != 0 && u.TotalBytes <= need {
		return fmt.Sprintf("the disk is too small: new commands are refused while less than %d MiB of it are free, half of limits.min_free, and it has %d MiB in all: set that lower in the node's configuration, or give it a larger disk",
			need>>20, u.TotalBytes>>20)
	}
	return fmt.Sprintf("the disk is full: new commands are refused until %d MiB of it are free, half of limits.min_free", need>>20)
}

// logLoad is what the wire tells of how busy the log is.
func logLoad(st *rsm.Status) *clusterpb.LogLoad {
	return &clusterpb.LogLoad{
		LeaseNs: int64(st.Lease), QueueCommands: uint64(st.QueueCommands), QueueBytes: uint64(st.QueueBytes), InFlight: uint64(st.InFlight),
		Applies: st.Applies, Deduped: st.Deduped, Reads: st.Reads, ReadIndexes: st.ReadIndex, Elections: st.Elections, Dropped: st.Dropped,
		Snapshots: st.Snapshots, Installs: st.Installs, Sessions: uint64(st.Sessions), Batch: spreadOf(&st.Batch), SyncNs: spreadOf(&st.SyncTime),
	}
}

func spreadOf(s *rsm.Spread) *clusterpb.Spread {
	return &clusterpb.Spread{Count: s.Count, Mean: s.Mean, P50: s.P50, P99: s.P99, Max: s.Max}
}

// blocksStatus tells of the blocks, and returns what a person should look at.
func (s *server) blocksStatus(r *clusterpb.StatusReply) (trouble string) {
	if s.redis != nil {
		r.BlockStore, trouble = s.redis.status()
		return trouble
	}
	epoch, drained := s.healer.Drained()
	r.Healing, r.TableEpoch = healing(s.healer.Status()), epoch
	for id, groups := range drained {
		d := &clusterpb.Drained{Source: uint64(id)}
		for _, pg := range groups {
			d.Groups = append(d.Groups, uint32(pg))
		}
		r.Drained = append(r.Drained, d)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	u, err := s.blocks.Usage(ctx)
	if err != nil {
		return err.Error()
	}
	r.Blocks, r.BytesUsed, r.BytesFree = u.Blocks, u.Used, u.Free
	if n := s.scrubber.Status().Lost; n > 0 {
		return fmt.Sprintf("%d blocks have rotted on the disk of this node and no node has a good copy: the bytes of their files there give EIO, write those files again; the node's log names the blocks", n)
	}
	return ""
}

// healing says in words what a node still fetches, nothing when it has all.
func healing(st spread.HealStatus) string {
	if st.Complete >= st.Groups {
		return ""
	}
	return fmt.Sprintf("comparing blocks with the other nodes: %d of %d placement groups done, %d blocks fetched", st.Complete, st.Groups, st.Fetched)
}

// resident is this process's memory in bytes, 0 where the kernel does not tell
// (proc(5), statm).
func resident() uint64 {
	raw, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(raw))
	if len(fields) < 2 {
		return 0
	}
	pages, err := strconv.ParseUint(fields[1], 10, 64)
	if err != nil {
		return 0
	}
	return pages * uint64(os.Getpagesize())
}
