package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/koinon/koinon"
)

// killed is what was signalled, as -o json prints it.
type killed struct {
	Job    string `json:"job"`
	Signal int    `json:"signal"`
	Tasks  int    `json:"tasks"` // that the signal concerned
}

func newKillCommand(p *procsApp) *cobra.Command {
	signal := "TERM"
	cmd := &cobra.Command{
		Use:   "kill [-s SIGNAL] JOB...",
		Short: "Stop jobs, or send them a signal",
		Long: `Stop jobs: each process and all that it started gets SIGTERM, and SIGKILL when the
job's grace time (10s) is over; what waits is taken out of the queue. JOB.INDEX
is one task of an array. The processes of a gang are signalled together.

-s KILL stops at once. Other signals are passed on to what runs.`,
		Example: "  koinon kill 17\n  koinon kill -s KILL 17.4 18\n  koinon kill -s HUP 17",
		Args:    arguments(1, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			number, err := parseSignal(signal)
			if err != nil {
				return &usageError{cmd: cmd.CommandPath(), err: err}
			}
			return p.with(cmd.Context(), func(ctx context.Context, procs *koinon.Procs) error {
				done := []killed{}
				err := p.each(ctx, args, func(job string) error {
					n, err := procs.Kill(ctx, job, number, caller())
					if err == nil && n == 0 && number != int(syscall.SIGTERM) && number != int(syscall.SIGKILL) {
						err = fmt.Errorf("nothing of job %s runs; what waits can be ended by TERM or KILL alone", job)
					} else if err == nil && n == 0 {
						err = fmt.Errorf("nothing of job %s runs or waits any more", job)
					}
					if err == nil {
						done = append(done, killed{job, number, n})
					}
					return err
				})
				return errors.Join(err, p.print(done, func(io.Writer) {}))
			})
		},
	}
	cmd.Flags().StringVarP(&signal, "signal", "s", signal, "`SIGNAL` by name or number")
	if err := cmd.RegisterFlagCompletionFunc("signal", cobra.FixedCompletions(signalNames[1:], cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic("koinon: expected the flag --signal to exist, found: " + err.Error())
	}
	cmd.ValidArgsFunction = p.completeJobs(false)
	return cmd
}
