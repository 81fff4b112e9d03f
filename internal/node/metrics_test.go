package node

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/koinon/koinon/internal/config"
	"github.com/koinon/koinon/internal/sys"
)

// scrape reads a node's metrics: the numbers by name and labels.
func scrape(t *testing.T, addr string) map[string]float64 {
	t.Helper()
	res, err := http.Get("http://" + addr + "/metrics")
	must(t, err)
	raw, err := io.ReadAll(res.Body)
	must(t, errors.Join(err, res.Body.Close()))
	if res.StatusCode != http.StatusOK {
		t.Fatalf("metrics: %s: %s", res.Status, raw)
	}
	problems, err := promlint.New(bytes.NewReader(raw)).Lint()
	must(t, err)
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "koinon_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
	found := map[string]float64{}
	for line := range strings.Lines(string(raw)) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok || strings.HasPrefix(line, "#") {
			continue
		}
		v, err := strconv.ParseFloat(value, 64)
		must(t, err)
		found[name] = v
	}
	return found
}

// TestMetrics: Prometheus and `koinon status` tell the same of a log that works.
func TestMetrics(t *testing.T) {
	l := newLab(t, 3, func(n *config.Node) { n.Metrics = freeAddr(t) })
	c := l.connect()
	defer func() { must(t, c.Close(t.Context())) }()
	st, err := c.Status(t.Context())
	must(t, err)
	for st.Leader == 0 {
		st, err = c.Status(t.Context())
		must(t, err)
	}
	leader, follower := l.nodes[st.Leader-1], l.nodes[st.Leader%3]
	m := scrape(t, leader.Metrics)
	for deadline := time.Now().Add(30 * time.Second); m["koinon_placement_groups_complete"] == 0 && time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		m = scrape(t, leader.Metrics) // it has not looked at its blocks yet
	}
	for _, name := range []string{"log_leader", "log_voter", "log_leader_known", "log_lease_seconds", "log_chosen_slot", "log_proposals_total", "log_entries_total",
		"log_applied_commands_total", "log_written_bytes_total", "log_batch_commands_count", "log_sync_seconds_count", "log_sync_seconds_sum",
		`log_sync_seconds_bucket{le="+Inf"}`, "log_sessions", "placement_groups", "placement_groups_complete", "blocks_free_bytes",
		fmt.Sprintf("log_follower_reachable{follower=%q}", follower.ID.String()),
		fmt.Sprintf(`node_info{cluster="lab",node=%q,version="test"}`, leader.ID.String())} {
		if m["koinon_"+name] <= 0 {
			t.Errorf("koinon_%s: more than 0 expected of a leader, found %v", name, m["koinon_"+name])
		}
	}
	if _, ok := m[fmt.Sprintf("koinon_log_follower_lag_slots{follower=%q}", follower.ID.String())]; !ok || m["go_goroutines"] <= 0 || m["process_open_fds"] <= 0 {
		t.Errorf("the lag of a follower, and what the process takes, expected, found %v", m)
	}
	if m := scrape(t, follower.Metrics); m["koinon_log_leader"] != 0 || m["koinon_log_lease_seconds"] != 0 || m["koinon_log_sync_seconds_count"] == 0 {
		t.Errorf("a follower that syncs expected, found %v", m)
	}
	st, err = c.Status(t.Context())
	must(t, err)
	s := st.Nodes[leader.ID-1].Log
	if s == nil || len(s.Followers) != 2 || !s.Followers[0].Reachable || float64(s.Syncs) < m["koinon_log_sync_seconds_count"] || s.SyncTime.Count == 0 ||
		s.SyncTime.P99 <= 0 || s.SyncTime.P99 > 60 || s.Batch.Mean < 1 || float64(s.Proposals) < m["koinon_log_proposals_total"] || s.Lease <= 0 {
		t.Errorf("status: what the metrics tell, or more, expected, found %+v", s)
	}
	if res, err := http.Get("http://" + leader.Metrics + "/"); err != nil || res.StatusCode != http.StatusNotFound || res.Body.Close() != nil {
		t.Errorf("/: nothing expected, found %v, %v", res, err)
	}

	taken := l.nodes[0]
	taken.Listen = freeAddr(t)
	if err := Serve(t.Context(), &taken, "test", slog.New(slog.DiscardHandler)); !sys.Is(err, sys.Busy) || !strings.Contains(err.Error(), "`metrics`") {
		t.Errorf("a port that is in use: sys.Busy that names the key expected, found %v", err)
	}
}
