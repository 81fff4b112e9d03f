package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/koinon/koinon"
)

func newWaitCommand(p *procsApp) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "wait JOB...",
		Short: "Wait for the end of jobs",
		Long: `Wait for the end of jobs. JOB may be JOB.INDEX, JOB:RANK or JOB.INDEX:RANK: then
only that task of an array, or that process of a gang, is waited for and told of.

The exit code is that of koinon run for the first of them that did not succeed, in
the order in which they are given, else 0. With -o json they are printed as they
are then.`,
		Example: "  koinon wait 17\n  koinon wait 17 18 && koinon cat koinon:/results/total\n  koinon wait 17.4 18:1",
		Args:    arguments(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.with(cmd.Context(), func(ctx context.Context, procs *koinon.Procs) error { return p.wait(ctx, procs, args) })
		},
	}
	cmd.ValidArgsFunction = p.completeJobs(false)
	return troubledCommand(cmd)
}

// wait waits for jobs. What they wait for each other does not matter: all are
// waited for.
func (p *procsApp) wait(ctx context.Context, procs *koinon.Procs, names []string) error {
	jobs, code := []*koinon.Job{}, 0
	for _, name := range names {
		job, err := procs.Wait(ctx, name)
		if err != nil {
			return err
		}
		jobs = append(jobs, job)
		if job.Exit() == 0 {
			continue
		}
		if code == 0 {
			code = job.Exit()
		}
		if why := p.failure(ctx, procs, job); why != nil {
			p.complain(why)
		}
	}
	if p.json() {
		if err := p.print(jobs, nil); err != nil {
			return err
		}
	}
	if code != 0 {
		return &exitError{code: code}
	}
	return nil
}
