//go:build linux

package test

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestHistoriesWhileMembersChange takes histories during which a machine joins
// and the node that led at the beginning is removed, while the others are
// killed, stopped and cut off.
func TestHistoriesWhileMembersChange(t *testing.T) {
	n := inNamespaces(t, clientTimeout)
	n.machine(4)
	n.port[4] = "7400"
	count, seed := (number(t, historiesEnv, 10)+4)/5, number(t, historySeedEnv, 1)
	var all tally
	for s := seed; s < seed+count; s++ {
		h := newHistory(n, s)
		h.leader = n.leads(0)
		h.move = &turnover{leaves: h.leader, joins: 1 + slices.Index(n.id[1:], 0)}
		h.take()
		all.add(h.tally)
		t.Logf("seed %d: %v; %v", s, h.move, h.tally)
	}
	if !t.Failed() {
		t.Logf("%d histories, all linearizable: %v", count, all)
	}
}

// turnover is a change of the members during a history: a node comes, then
// another one goes. Numbers are of namespaces.
type turnover struct {
	leaves, joins  int
	token          string
	joining, going *run
	signs          bool // the node that joins has the CA's key, so that all others may go
	tries          int
	done           bool
}

func (m *turnover) String() string {
	return fmt.Sprintf("node at %d joined: %v, node at %d removed: %v, %d tries", m.joins, m.going != nil, m.leaves, m.done, m.tries)
}

// victims are where faults strike: not at who comes or goes, so that what is
// tried is the change and not the death of those.
func (h *history) victims() []int {
	return slices.DeleteFunc(h.n.nodes(), func(i int) bool { return h.move != nil && (i == h.move.leaves || i == h.move.joins) })
}

var idLine = regexp.MustCompile(`(?m)^id = (\d+)$`)

// turned takes the change of members a step further, if it can, and reports
// whether nothing is left to do. Nodes that cannot be reached now are tried
// again the next time.
func (h *history) turned() bool {
	m, n := h.move, h.n
	if m == nil || m.done {
		return true
	}
	n.t.Helper()
	dir := n.besides(fmt.Sprintf("joined%d", h.seed))
	switch {
	case m.token == "":
		var out bytes.Buffer
		if n.clientTo(&out, io.Discard, "node", "token") == nil {
			m.token = strings.TrimSpace(out.String())
		}
	case m.joining == nil || m.going == nil && m.joining.over():
		line := []string{"serve", "--token", m.token, "--dir", dir, "--listen", address(m.joins) + ":" + n.port[m.joins]}
		for _, i := range n.nodes() {
			line = append(line, "--join", address(i)+":"+n.port[i])
		}
		m.tries++
		m.joining = n.wrapped(n.inside(m.joins), line...)
	case m.going == nil && !strings.Contains(m.joining.said(), "msg=serving"):
	case m.going == nil && !m.signs:
		n.ends(m.joining) // and the same command line starts it again
		edit(n.t, dir+"/node.toml", func(s string) string {
			return replaceOnce(n.t, s, "\n[tls]\n", "\n[tls]\nca_key = \""+n.at("ca", "ca.key")+"\"\n")
		})
		m.signs = true
	case m.going == nil:
		n.config[m.joins] = dir + "/node.toml"
		raw, err := os.ReadFile(n.config[m.joins])
		id := idLine.FindSubmatch(raw)
		if err != nil || id == nil {
			n.t.Fatalf("the configuration of a node that has joined: %v\n%s", err, raw)
		}
		if n.id[m.joins], err = strconv.Atoi(string(id[1])); err != nil {
			n.t.Fatal(err)
		}
		n.keep(m.joins, m.joining)
		m.going = n.wrapped(n.inside(hub), "node", "rm", itoa(n.id[m.leaves]))
	case m.going != nil && m.going.over():
		if m.going.err != nil {
			m.tries++
			m.going = n.wrapped(n.inside(hub), "node", "rm", itoa(n.id[m.leaves]))
			return false
		}
		if err := n.served[m.leaves].end(healedWithin); err != nil {
			n.t.Errorf("a node that was removed ended with %v", err)
		}
		n.id[m.leaves], n.served[m.leaves], m.done = 0, nil, true
	}
	return m.done
}

// over reports whether the process has ended.
func (r *run) over() bool {
	select {
	case <-r.ended:
		return true
	default:
		return false
	}
}
