package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/koinon/koinon"
)

func newPsCommand(p *procsApp) *cobra.Command {
	var opt koinon.ListJobs
	cmd := &cobra.Command{
		Use:   "ps",
		Short: "List the jobs that wait or run on the cluster",
		Long: `List the jobs that wait or run on the cluster, of all users, the newest first.
With -a those too that have ended: the cluster remembers them for seven days.

DONE is how many of an array's tasks have ended. EXIT is the exit code of the
first that failed.`,
		Example: "  koinon ps\n  koinon ps -a -u ada --limit 20\n  koinon ps -o json",
		Args:    arguments(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if opt.Limit < 0 {
				return &usageError{cmd: cmd.CommandPath(), err: fmt.Errorf("--limit is %d: give how many jobs to list, 0 for all", opt.Limit)}
			}
			if err := notEmpty(cmd.Flags()); err != nil {
				return &usageError{cmd: cmd.CommandPath(), err: err}
			}
			return p.with(cmd.Context(), func(ctx context.Context, procs *koinon.Procs) error {
				jobs, err := allJobs(ctx, procs, opt)
				if err != nil {
					return err
				}
				return p.print(jobs, func(w io.Writer) { writeJobs(w, jobs, time.Now(), isTerminal(p.out)) })
			})
		},
	}
	cmd.Flags().BoolVarP(&opt.Ended, "all", "a", false, "those that have ended, too")
	cmd.Flags().StringVarP(&opt.User, "user", "u", "", "only jobs of `USER`")
	cmd.Flags().IntVar(&opt.Limit, "limit", 0, "the newest `N` jobs; 0 is all")
	return cmd
}

// allJobs lists jobs, as many as opt.Limit says.
func allJobs(ctx context.Context, procs *koinon.Procs, opt koinon.ListJobs) ([]koinon.Job, error) {
	list, most := []koinon.Job{}, opt.Limit
	for {
		jobs, next, err := procs.Jobs(ctx, opt)
		if err != nil {
			return nil, err
		}
		list = append(list, jobs...)
		if most > 0 {
			opt.Limit = most - len(list)
		}
		if next == 0 || most > 0 && opt.Limit <= 0 {
			return list, nil
		}
		opt.Below = next
	}
}

// writeJobs writes a table of jobs; on a terminal, long commands are cut.
func writeJobs(w io.Writer, jobs []koinon.Job, now time.Time, cut bool) {
	row(w, "JOB", "STATE", "DONE", "EXIT", "USER", "AGE", "RAN", "WHERE", "COMMAND")
	for _, j := range jobs {
		done, exit, ran := "", "", ""
		if j.Array {
			done = fmt.Sprintf("%d/%d", j.Tasks.Ended(), j.Tasks.Total)
		}
		switch {
		case j.State.Over():
			exit = fmt.Sprint(j.Exit())
		case j.ExitCode != nil:
			exit = fmt.Sprint(*j.ExitCode)
		}
		if j.Started != nil {
			end := now
			if j.Ended != nil {
				end = *j.Ended
			}
			ran = ago(end.Sub(*j.Started))
		}
		row(w, j.ID, j.State, done, exit, shown(j.User), ago(now.Sub(j.Submitted)), ran, whereOrWhy(j, cut), jobCommand(j, cut))
	}
}

// whereOrWhy is where a job runs or ran, or why it does not run yet.
func whereOrWhy(j koinon.Job, cut bool) string {
	text := nodeIDs(j.Nodes)
	if text == "" && j.Why != "" && !j.State.Over() {
		text = "(" + j.Why + ")"
	}
	if cut {
		return fit(text, columnMax)
	}
	return text
}

// columnMax is how wide a column with free text may be on a terminal.
const columnMax = 40

// jobCommand is what a job runs, with its name where it has one.
func jobCommand(j koinon.Job, cut bool) string {
	words := make([]string, len(j.Command))
	for i, word := range j.Command {
		words[i] = quoted(word)
	}
	text := strings.Join(words, " ")
	if strings.IndexFunc(text, func(r rune) bool { return r < ' ' }) >= 0 {
		text = shown(text)
	}
	if j.Name != "" {
		text = shown(j.Name) + ": " + text
	}
	if cut {
		return fit(text, columnMax)
	}
	return text
}
