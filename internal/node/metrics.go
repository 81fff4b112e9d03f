package node

import (
	"context"
	"errors"
	"net"
	"net/http"
	"time"

	"github.com/koinon/koinon/internal/rsm"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metrics is what Prometheus reads of a node. Everything is looked at when it is
// asked for, so that a node that nobody watches pays nothing.
type metrics struct{ s *server }

// reading is a number that a replica's status has.
type reading struct {
	name, help string
	kind       prometheus.ValueType
	value      func(st *rsm.Status) float64
}

func level(name, help string, value func(st *rsm.Status) float64) reading {
	return reading{"koinon_log_" + name, help, prometheus.GaugeValue, value}
}

func count(name, help string, value func(st *rsm.Status) uint64) reading {
	return reading{"koinon_log_" + name + "_total", help, prometheus.CounterValue,
		func(st *rsm.Status) float64 { return float64(value(st)) }}
}

func one(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// readings lists the numbers of the log.
func readings() []reading {
	type status = *rsm.Status
	return []reading{
		level("leader", "1 when this node leads.", func(st status) float64 { return one(st.Role == rsm.Leader) }),
		level("leader_known", "1 when this node knows a leader.", func(st status) float64 { return one(st.Leader != 0) }),
		level("voter", "1 when this node votes.", func(st status) float64 { return one(st.Voter) }),
		level("damaged", "1 when this node's log is damaged, so that it does not vote.", func(st status) float64 { return one(st.Damaged != "") }),
		level("disk_full", "1 when new commands are refused because the disk is full.", func(st status) float64 { return one(st.NoSpace) }),
		level("ballot_round", "Round of the highest ballot promised.", func(st status) float64 { return float64(st.BallotRound) }),
		level("lease_seconds", "How much longer the leader may serve reads without asking.", func(st status) float64 { return st.Lease.Seconds() }),
		level("chosen_slot", "Every slot up to it is chosen.", func(st status) float64 { return float64(st.Chosen) }),
		level("applied_slot", "Every slot up to it is in the state.", func(st status) float64 { return float64(st.Applied) }),
		level("flushed_slot", "Every slot up to it is in the state on stable storage.", func(st status) float64 { return float64(st.Flushed) }),
		level("truncated_slot", "Every slot up to it is cut from the log.", func(st status) float64 { return float64(st.Truncated) }),
		level("queue_commands", "Commands that wait to be proposed.", func(st status) float64 { return float64(st.QueueCommands) }),
		level("queue_bytes", "Bytes of the commands that wait to be proposed.", func(st status) float64 { return float64(st.QueueBytes) }),
		level("in_flight_entries", "Entries proposed and not applied.", func(st status) float64 { return float64(st.InFlight) }),
		level("sessions", "Sessions of clients.", func(st status) float64 { return float64(st.Sessions) }),
		count("proposals", "Commands taken from callers.", func(st status) uint64 { return st.Proposals }),
		count("entries", "Entries proposed.", func(st status) uint64 { return st.Entries }),
		count("applied_commands", "Commands applied.", func(st status) uint64 { return st.Applies }),
		count("deduplicated_commands", "Commands that had been applied before.", func(st status) uint64 { return st.Deduped }),
		count("reads", "Linearizable reads.", func(st status) uint64 { return st.Reads }),
		count("read_indexes", "Linearizable reads that needed a round.", func(st status) uint64 { return st.ReadIndex }),
		count("elections", "Changes of leader seen.", func(st status) uint64 { return st.Elections }),
		count("dropped_messages", "Messages that came faster than they were handled.", func(st status) uint64 { return st.Dropped }),
		count("written_bytes", "Bytes written to the log.", func(st status) uint64 { return st.LogBytes }),
		count("written_records", "Records written to the log.", func(st status) uint64 { return st.LogRecords }),
		count("snapshots_sent", "Snapshots sent.", func(st status) uint64 { return st.Snapshots }),
		count("snapshots_received", "Snapshots received.", func(st status) uint64 { return st.Installs }),
	}
}

// Describe implements prometheus.Collector. It tells nothing: what there is to
// read differs between a leader and others.
func (m metrics) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (m metrics) Collect(ch chan<- prometheus.Metric) {
	st := m.s.group.Status()
	tell := func(name, help string, value float64, labels ...string) {
		names, values := []string{}, []string{}
		for i := 0; i < len(labels); i += 2 {
			names, values = append(names, labels[i]), append(values, labels[i+1])
		}
		ch <- prometheus.MustNewConstMetric(prometheus.NewDesc(name, help, names, nil), prometheus.GaugeValue, value, values...)
	}
	tell("koinon_node_info", "Which node this is; always 1.", 1, "cluster", m.s.cfg.Cluster, "node", m.s.cfg.ID.String(), "version", m.s.version)
	for _, r := range readings() {
		ch <- prometheus.MustNewConstMetric(prometheus.NewDesc(r.name, r.help, nil, nil), r.kind, r.value(&st))
	}
	for _, p := range st.Peers {
		id := p.ID.String()
		tell("koinon_log_follower_lag_slots", "Chosen slots that a follower may lack, as the leader sees it.", float64(p.Lag), "follower", id)
		tell("koinon_log_follower_reachable", "1 when a follower has answered within an election timeout, as the leader sees it.", one(p.Reachable), "follower", id)
		tell("koinon_log_follower_silent_seconds", "How long ago a follower answered, as the leader sees it; negative when never.", p.LastSeen.Seconds(), "follower", id)
	}
	ch <- histogram("koinon_log_batch_commands", "Commands in an entry that this node proposed.", &st.Batch, 0, 12, 1)
	ch <- histogram("koinon_log_sync_seconds", "How long writes of the log take, with their sync.", &st.SyncTime, 14, 34, 1e-9)
	heal := m.s.healer.Status()
	tell("koinon_placement_groups", "Placement groups that this node is to hold.", float64(heal.Groups))
	tell("koinon_placement_groups_complete", "Placement groups of which it has every block.", float64(heal.Complete))
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if u, err := m.s.blocks.Usage(ctx); err == nil { // what is wrong with the disk, status tells
		tell("koinon_blocks", "Blocks on this node.", float64(u.Blocks))
		tell("koinon_blocks_used_bytes", "Disk space that blocks take.", float64(u.Used))
		tell("koinon_blocks_free_bytes", "Disk space left for blocks.", float64(u.Free))
	}
}

// histogram has a bucket for each power of two from lo to hi; a number counts in
// units of so much.
func histogram(name, help string, s *rsm.Spread, lo, hi int, unit float64) prometheus.Metric {
	buckets := map[float64]uint64{}
	for k := lo; k <= hi; k++ {
		buckets[float64(uint64(1)<<k-1)*unit] = s.Below[k]
	}
	return prometheus.MustNewConstHistogram(prometheus.NewDesc(name, help, nil, nil), s.Count, s.Mean*float64(s.Count)*unit, buckets)
}

// serveMetrics answers Prometheus at the listener until ctx is done.
func (s *server) serveMetrics(ctx context.Context, l net.Listener) {
	reg := prometheus.NewRegistry()
	reg.MustRegister(metrics{s}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{MaxRequestsInFlight: metricsAtOnce}))
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: metricsTimeout, WriteTimeout: metricsTimeout, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		BaseContext: func(net.Listener) context.Context { return ctx }}
	stop := context.AfterFunc(ctx, func() {
		if err := srv.Close(); err != nil {
			s.log.Debug("closing the metrics", "err", err)
		}
	})
	defer stop()
	s.log.Info("metrics", "url", "http://"+l.Addr().String()+"/metrics")
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) && ctx.Err() == nil {
		s.log.Warn("no more metrics", "err", err)
	}
}

const (
	// metricsAtOnce bounds the requests that are answered at a time.
	metricsAtOnce  = 4
	metricsTimeout = 10 * time.Second
)
