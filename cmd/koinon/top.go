package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/koinon/koinon"
)

// topEvery is how often top draws.
const topEvery = time.Second

// topJobs is how many jobs top shows; koinon ps shows all.
const topJobs = 50

// topView is what top shows, as -o json prints it.
type topView struct {
	Nodes []koinon.ProcNode `json:"nodes"`
	Jobs  []koinon.Job      `json:"jobs"` // the newest that have not ended
}

func newTopCommand(p *procsApp) *cobra.Command {
	var times int
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Watch nodes and jobs",
		Long: `Watch what the nodes have, what is reserved there, and which jobs run or wait: drawn
anew each second on a terminal, until Ctrl-C, else once. CPU and MEMORY are what
is reserved, of what the node gives to processes.`,
		Example: "  koinon top\n  koinon top -n 1 -o json",
		Args:    arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if times < 0 {
				return &usageError{cmd: cmd.CommandPath(), err: errors.New("-n is not negative")}
			}
			if times == 0 && (!isTerminal(p.out) || p.json()) {
				times = 1
			}
			return p.with(cmd.Context(), func(ctx context.Context, procs *koinon.Procs) error { return p.top(ctx, procs, times) })
		},
	}
	cmd.Flags().IntVarP(&times, "times", "n", 0, "draw `N` times; 0 is until Ctrl-C")
	return cmd
}

// top draws so many times; 0 is without end.
func (p *procsApp) top(ctx context.Context, procs *koinon.Procs, times int) error {
	tick := time.NewTicker(topEvery)
	defer tick.Stop()
	for n := 1; ; n++ {
		v, err := readTop(ctx, procs)
		if err != nil {
			return err
		}
		if p.json() || !isTerminal(p.out) {
			err = p.print(v, func(w io.Writer) { writeTop(w, v, false) })
		} else {
			err = p.draw(v)
		}
		if err != nil || n == times {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func readTop(ctx context.Context, procs *koinon.Procs) (*topView, error) {
	nodes, err := procs.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	jobs, _, err := procs.Jobs(ctx, koinon.ListJobs{Limit: topJobs})
	if jobs == nil {
		jobs = []koinon.Job{}
	}
	return &topView{Nodes: nodes, Jobs: jobs}, err
}

// draw replaces what the terminal shows, in one write so that nothing
// flickers.
func (p *procsApp) draw(v *topView) error {
	var b bytes.Buffer
	w := tabwriter.NewWriter(&b, 0, 8, 2, ' ', tabwriter.StripEscape)
	writeTop(w, v, true)
	if err := w.Flush(); err != nil {
		return err
	}
	lines := strings.Split(strings.TrimRight(b.String(), "\n"), "\n")
	width, height := terminalWidth(p.out), terminalHeight(p.out)
	if len(lines) >= height {
		lines = lines[:max(1, height-1)]
	}
	var screen strings.Builder
	screen.WriteString("\x1b[H")
	for _, line := range lines {
		screen.WriteString(fit(line, width) + "\x1b[K\n")
	}
	screen.WriteString("\x1b[J")
	_, err := io.WriteString(p.out, screen.String())
	return err
}

func writeTop(w io.Writer, v *topView, cut bool) {
	row(w, "NODE", "HOST", "STATE", "CPU", "MEMORY", "PROCESSES", "LABELS", "LIMITS")
	for _, n := range v.Nodes {
		var labels []string
		for k, value := range n.Labels {
			labels = append(labels, k+"="+value)
		}
		row(w, nodeID(n.ID), shown(n.Name), procNodeState(n), fmt.Sprintf("%.4g of %.4g", n.CPUsUsed, n.CPUs),
			byteSize(uint64(max(0, n.MemUsed)))+" of "+byteSize(uint64(max(0, n.Memory))), n.Processes, sortedWords(labels), n.Limits)
	}
	fmt.Fprintln(w)
	writeJobs(w, v.Jobs, time.Now(), cut)
}

func procNodeState(n koinon.ProcNode) string {
	switch {
	case !n.Alive:
		return "down"
	case n.Draining:
		return "draining"
	case n.Mount == "":
		return "up, tree not mounted"
	}
	return "up"
}
