package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/koinon/koinon"
)

func newLogsCommand(p *procsApp) *cobra.Command {
	var follow, onlyOut, onlyErr bool
	cmd := &cobra.Command{
		Use:   "logs [-f] JOB",
		Short: "Print what the processes of a job have written",
		Long: `Print what the processes of a job have written so far, standard output to standard
output and standard error to standard error. JOB may be JOB.INDEX, JOB:RANK or
JOB.INDEX:RANK. Of several processes each line is tagged, as by koinon run.

The same is in the tree, as files: /.koinon/proc/JOB/stdout and stderr, with a
directory for each process; they stay for as long as the job is remembered.

-o json prints an object for each line: process, stream, and text (or base64).`,
		Example: "  koinon logs 17\n  koinon logs -f 17.4\n  koinon logs --stderr 17:1",
		Args:    arguments(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if onlyOut && onlyErr {
				return &usageError{cmd: cmd.CommandPath(), err: errors.New("--stdout leaves out what --stderr is for: give one of them, or neither for both")}
			}
			return p.with(cmd.Context(), func(ctx context.Context, procs *koinon.Procs) error {
				t := &tagged{name: args[0], json: p.json(), out: p.out, err: p.err, skipOut: onlyErr, skipErr: onlyOut}
				if follow {
					job, err := procs.Follow(ctx, args[0], koinon.FollowOptions{Output: t.write})
					if err != nil {
						return err
					}
					return cut(ctx, procs, job)
				}
				return procs.Logs(ctx, args[0], t.write)
			})
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what is written, to the end of the job")
	cmd.Flags().BoolVar(&onlyOut, "stdout", false, "standard output only")
	cmd.Flags().BoolVar(&onlyErr, "stderr", false, "standard error only")
	cmd.ValidArgsFunction = p.completeJobs(true)
	return cmd
}
