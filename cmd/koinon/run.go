package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/koinon/koinon"
	"github.com/koinon/koinon/internal/config"
)

const runLong = `Run a command on the cluster's nodes: as one process, as a gang of processes that
start together or not at all (-n), or as an array of tasks (--array, --each). The
cluster chooses the nodes, reserves what is needed on all of them or on none, and
records how every process ended.

In the foreground, output appears as it is written, and the exit code is the
command's own. It is tagged [RANK], [INDEX] or [INDEX:RANK] when there are several
processes, whose lines stay whole. A single process reads this command's standard
input when that is no terminal; with -i also when it is one. Ctrl-C asks the job
to stop (SIGTERM, and SIGKILL --grace later), a second one kills it, a third one
leaves it alone; so do SIGTERM and SIGHUP, as of a terminal that is closed (-d
leaves a job to itself). When this command is killed the job goes on.

The working directory is this one when it is in a mount of the tree, else the
tree's root. PATHs are koinon:/PATH, or paths of this machine in a mount of the
tree. The process gets no variables of this shell but those given with --env; see
docs/processes.md for those of Koinon's own: KOINON_RANK and KOINON_SIZE say where it
stands in its gang, KOINON_NODES and KOINON_HOSTS which nodes and hosts the gang is on.

In the command {} stands for the index or the item. Items of --each are paths
from the working directory on, and each task is placed near its file.

Exit codes: the command's own, 128 and the signal's number when one ended it, of
several the first that failed; 125 trouble of Koinon's own, also a wrong command
line; 126 and 127 the command cannot be run, or is not there.`

const runExample = `  koinon run -- uname -a
  koinon run -n 3 -c 0.5 -- sh -c 'echo $KOINON_RANK of $KOINON_SIZE on $KOINON_NODE'
  koinon run --array 0-99%10 -- ./render --frame {}
  koinon run --each 'text/*.txt' -- sh -c 'wc -w "$KOINON_ITEM" > "$KOINON_ITEM.count"'
  koinon run -d --name nightly -m 2GiB --timeout 1h -- ./backup.sh
  koinon run --after ok:17 --out koinon:/results -- sh -c './sum > $KOINON_OUT/total'`

// runFlags are those of koinon run.
type runFlags struct {
	size                 int
	cpus                 float64
	memory               config.Size
	near, dir, out, each string
	on, env, after       []string
	name, array          string
	detach, pack, stdin  bool
	timeout, grace       time.Duration
	retries, atOnce      int
}

func newRunCommand(p *procsApp) *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use: "run [flags] -- COMMAND [ARG...]", Short: "Run a command on the cluster's nodes", Long: runLong, Example: runExample,
		DisableFlagsInUseLine: true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errors.New("a command is missing: koinon run -- COMMAND [ARG...]")
			}
			if p.json() && !f.detach {
				return errors.New("-o json: in the foreground all output is the command's own: add -d, and use `koinon wait -o json` or `koinon inspect -o json`")
			}
			return errors.Join(notEmpty(cmd.Flags()), f.check())
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			p := *p
			p.where = sync.OnceValues(p.where)
			go func() { _, _ = p.where() }() // while the cluster is being reached: who needs it gets the error, or does not wait for it
			return p.with(cmd.Context(), func(ctx context.Context, procs *koinon.Procs) error {
				spec, err := p.jobSpec(ctx, procs, f, args)
				if err != nil {
					return err
				}
				if f.detach {
					return p.submit(ctx, procs, spec)
				}
				return p.foreground(ctx, procs, spec)
			})
		},
	}
	flags := cmd.Flags()
	flags.SetInterspersed(false) // what follows COMMAND is its own
	flags.IntVarP(&f.size, "gang", "n", 1, fmt.Sprintf("`N` processes, at most %d, which start together or not at all", koinon.SizeMax))
	flags.Float64VarP(&f.cpus, "cpus", "c", koinon.DefaultCPUs, "`CPUS` for each process, such as 0.5")
	flags.VarP(&sizeValue{&f.memory}, "memory", "m", "`MEM` for each process, such as 512M or 1.5GiB: more is not to be had (default no limit)")
	flags.StringVar(&f.near, "near", "", "on nodes that hold the bytes of `PATH`, where they have room")
	flags.StringArrayVar(&f.on, "on", nil, "only on `NODE` (number or host), or on nodes with LABEL=V; may be repeated")
	flags.BoolVar(&f.pack, "pack", false, "on few nodes, not spread")
	flags.BoolVarP(&f.detach, "detach", "d", false, "print the job's number and do not wait")
	flags.StringVar(&f.name, "name", "", "call the job `S` in lists")
	flags.StringArrayVar(&f.env, "env", nil, "set a variable, `K=V`, or pass on this shell's, K; may be repeated")
	flags.StringVarP(&f.dir, "directory", "C", "", "working directory, a `PATH` in the tree")
	flags.DurationVar(&f.timeout, "timeout", 0, "stop a task `TIME` after its start, such as 10m; 0 is never")
	flags.DurationVar(&f.grace, "grace", 0, "`TIME` from SIGTERM to SIGKILL; 0 is 10s")
	flags.IntVar(&f.retries, "retries", 0, "try a task that fails or is lost up to `K` times more")
	flags.StringVar(&f.array, "array", "", fmt.Sprintf("a task for each index of `FIRST-LAST`, or the one that is given, at most %d; FIRST-LAST%%N runs at most N at once", koinon.ArrayMax))
	flags.StringVar(&f.each, "each", "", "a task for each file that matches `GLOB`")
	flags.IntVar(&f.atOnce, "at-once", 0, "at most `N` tasks at once; 0 is as many as there is room for")
	flags.StringArrayVar(&f.after, "after", nil, "not before job ID has succeeded, `ok:ID`, or ended, any:ID; may be repeated")
	flags.StringVar(&f.out, "out", "", "outputs in $KOINON_OUT become the new directory `PATH`, when it exits with 0")
	flags.BoolVarP(&f.stdin, "interactive", "i", false, "read standard input also from a terminal")
	complete := func(flag string, fn cobra.CompletionFunc) {
		if err := cmd.RegisterFlagCompletionFunc(flag, fn); err != nil {
			panic(fmt.Sprintf("koinon: expected the flag --%s to exist, found %v", flag, err))
		}
	}
	complete("on", p.completeNodes)
	complete("directory", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return nil, cobra.ShellCompDirectiveFilterDirs
	})
	return troubledCommand(cmd)
}

// notEmpty refuses flags that were given nothing, as by a variable that is not
// set: the job would run, and differ from what was meant.
func notEmpty(flags *pflag.FlagSet) (err error) {
	flags.Visit(func(f *pflag.Flag) {
		if f.Value.Type() == "string" && f.Value.String() == "" && err == nil {
			err = fmt.Errorf("--%s is empty: give it a value, or leave it out", f.Name)
		}
	})
	return err
}

// sizeValue is a flag of a config.Size.
type sizeValue struct{ size *config.Size }

func (v *sizeValue) String() string {
	if v.size == nil || *v.size == 0 {
		return ""
	}
	return v.size.String()
}

func (v *sizeValue) Set(s string) error { return v.size.UnmarshalText([]byte(s)) }

func (v *sizeValue) Type() string { return "SIZE" }

// submitted is a job that was made, as -o json prints it.
type submitted struct {
	ID uint64 `json:"id"`
}

// submit makes a job and leaves it to itself.
func (p *procsApp) submit(ctx context.Context, procs *koinon.Procs, spec koinon.JobSpec) error {
	id, err := procs.Submit(ctx, spec)
	if s, ok := errors.AsType[*signalError](context.Cause(ctx)); err != nil && ok {
		return &exitError{codeSignal + int(s.Signal), errMayBeMade}
	} else if err != nil {
		return err
	}
	if err := p.print(submitted{id}, func(w io.Writer) { row(w, id) }); err != nil { // who tries again would have it run twice
		return &toldError{fmt.Sprintf("job %d is submitted, but its number could not be written: %s", id, words(err)), err}
	}
	return nil
}
