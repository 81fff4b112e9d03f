package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/koinon/koinon"
)

func newInspectCommand(p *procsApp) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "inspect JOB",
		Short: "Tell everything about a job: why it waits, where it runs",
		Long: `Tell everything about a job: what was asked for, why it waits and which nodes have
refused it, where its processes run and why there, and how they ended. JOB may be
JOB.INDEX, JOB:RANK or JOB.INDEX:RANK: of its tasks and processes only these.`,
		Example: "  koinon inspect 17\n  koinon inspect 17.4 -o json",
		Args:    arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.with(cmd.Context(), func(ctx context.Context, procs *koinon.Procs) error {
				d, err := procs.Inspect(ctx, args[0])
				if err != nil {
					return err
				}
				return p.print(d, func(w io.Writer) { writeDetails(w, d, time.Now()) })
			})
		},
	}
	cmd.ValidArgsFunction = p.completeJobs(true)
	return cmd
}

// writeDetails writes a job for people.
func writeDetails(w io.Writer, d *koinon.JobDetails, now time.Time) {
	state := string(d.State)
	if d.State.Over() {
		state += fmt.Sprintf(", exit code %d", d.Exit())
	}
	line := func(what string, value any) {
		if s := fmt.Sprint(value); s != "" {
			fmt.Fprintf(w, "%s\t%s\n", what, s)
		}
	}
	line("job", d.ID)
	line("state", state)
	line("command", jobCommand(d.Job, false))
	line("user", shown(d.User))
	line("submitted", when(&d.Submitted, now))
	line("started", when(d.Started, now))
	line("ended", when(d.Ended, now))
	writeAskedFor(line, &d.Spec)
	if d.Array {
		line("tasks", countWords(d.Tasks))
	}
	if len(d.BlockedBy) > 0 {
		line("waits for", jobWords(d.BlockedBy))
	}
	for _, e := range d.Waiting {
		writeExplanation(w, e, now)
	}
	writeTasks(w, d, now)
}

// writeAskedFor writes what the submitter asked for beside the command.
func writeAskedFor(line func(string, any), s *koinon.JobSpec) {
	needs := fmt.Sprintf("%.4g CPU", s.CPUs)
	if s.Memory > 0 {
		needs += ", " + byteSize(uint64(s.Memory))
	}
	if s.Size > 1 {
		needs = fmt.Sprintf("%d processes, each %s", s.Size, needs)
	}
	line("needs", needs)
	line("directory", s.Dir)
	var only []string
	for k, v := range s.Labels {
		only = append(only, k+"="+v)
	}
	if len(s.Nodes) > 0 {
		only = append(only, nodeIDs(s.Nodes))
	}
	line("only on", sortedWords(only))
	line("near", s.Near)
	line("outputs", s.Out)
	for _, a := range s.After {
		how := "the success"
		if a.Any {
			how = "the end"
		}
		line("after", fmt.Sprintf("%s of job %d", how, a.Job))
	}
	if s.Retries > 0 {
		line("retries", s.Retries)
	}
	if s.AtOnce > 0 {
		line("at once", fmt.Sprintf("at most %d tasks", s.AtOnce))
	}
	if s.Timeout > 0 {
		line("timeout", s.Timeout)
	}
}

// writeExplanation writes why a task waits.
func writeExplanation(w io.Writer, e koinon.Explanation, now time.Time) {
	fmt.Fprintf(w, "\n%s waits: %s\n", e.Task, e.Why)
	for _, n := range e.Nodes {
		name := nodeID(n.Node)
		if n.Name != "" && n.Name != name {
			name += " (" + n.Name + ")"
		}
		fmt.Fprintf(w, "  %s\troom for %d\t%s\n", name, n.Room, n.Why)
	}
	for _, r := range e.Refusals {
		said := nodeID(r.Node) + " refused"
		if r.Node == 0 { // the leader gave up
			said = "given up"
		}
		often := fmt.Sprintf("%d times, last", r.Count)
		if r.Count == 1 {
			often = "once,"
		}
		fmt.Fprintf(w, "  %s %s %s ago: %s\n", said, often, ago(now.Sub(r.Last)), r.Reason)
	}
}

// writeTasks writes the tasks with their processes, a row for each.
func writeTasks(w io.Writer, d *koinon.JobDetails, now time.Time) {
	fmt.Fprintln(w)
	row(w, "PROCESS", "STATE", "TRY", "NODE", "PID", "EXIT", "RAN", "CPU", "MEMORY", "ITEM", "WHY")
	for _, t := range d.TaskList {
		if len(t.Processes) == 0 {
			row(w, t.Name, t.State, t.Try, "", "", exitWords(t.State, t.ExitCode, 0), "", "", "", cell(t.Item), cell(t.Why))
		}
		for _, q := range t.Processes {
			ran := ""
			if q.Started != nil {
				end := now
				if q.Ended != nil {
					end = *q.Ended
				}
				ran = ago(end.Sub(*q.Started))
			}
			memory := ""
			if q.MemoryMax > 0 {
				memory = byteSize(uint64(q.MemoryMax))
			}
			why := t.Why
			if t.State.Over() && q.State == koinon.StateExited { // that is of another one
				why = ""
			}
			if !strings.Contains(why, q.Why) { // why a task is tried again holds it
				why = strings.TrimPrefix(why+"; "+q.Why, "; ")
			}
			if q.OOM {
				why = strings.TrimPrefix(why+"; killed for want of memory", "; ")
			}
			row(w, q.Name, q.State, t.Try, nodeID(q.Node), q.PID, exitWords(q.State, q.ExitCode, q.Signal), ran,
				q.CPU.Round(time.Millisecond), memory, cell(t.Item), cell(why))
		}
	}
}

// cell is a text of somebody else's in a table.
func cell(text string) string {
	if text == "" {
		return ""
	}
	return shown(text)
}

func exitWords(s koinon.State, code *int, signal int) string {
	switch {
	case !s.Over(), code == nil:
		return ""
	case signal > 0:
		return fmt.Sprintf("%d (%s)", *code, signalName(signal))
	}
	return fmt.Sprint(*code)
}

func when(t *time.Time, now time.Time) string {
	if t == nil {
		return ""
	}
	return fmt.Sprintf("%s (%s ago)", t.Local().Format(time.DateTime), ago(now.Sub(*t)))
}

// countWords says how many tasks are in which state.
func countWords(c koinon.TaskCounts) string {
	words := []string{fmt.Sprint(c.Total)}
	for _, k := range []struct {
		n     int
		state koinon.State
	}{
		{c.Waiting, koinon.StateWaiting}, {c.Queued, koinon.StateQueued}, {c.Running, koinon.StateRunning}, {c.Exited, koinon.StateExited},
		{c.Failed, koinon.StateFailed}, {c.Killed, koinon.StateKilled}, {c.Lost, koinon.StateLost}, {c.Cancelled, koinon.StateCancelled},
	} {
		if k.n > 0 {
			words = append(words, fmt.Sprintf("%d %s", k.n, k.state))
		}
	}
	return strings.Join(words, ", ")
}

func jobWords(ids []uint64) string {
	words := make([]string, len(ids))
	for i, id := range ids {
		words[i] = fmt.Sprint(id)
	}
	return "job " + strings.Join(words, ", ")
}

func sortedWords(words []string) string {
	slices.Sort(words)
	return strings.Join(words, " ")
}
