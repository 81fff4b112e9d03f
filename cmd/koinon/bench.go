package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/koinon/koinon/internal/bench"
)

// sizeFlag is a flag that holds a number of bytes.
type sizeFlag int64

// String implements pflag.Value.
func (s *sizeFlag) String() string { return byteSize(uint64(*s)) }

// Set implements pflag.Value.
func (s *sizeFlag) Set(text string) error {
	n, err := bench.ParseSize(text)
	if err != nil {
		return err
	}
	*s = sizeFlag(n)
	return nil
}

// Type implements pflag.Value.
func (s *sizeFlag) Type() string { return "SIZE" }

const benchExample = `  koinon bench ~/tree                              everything, with 1 and 8 workers
  koinon bench ~/tree --only create,stat           two tests
  koinon bench ~/tree --compare /tmp --rounds 3    ours beside the local disk, in turn
  koinon bench /mnt/other -o json > other.json     a peer's mount, for the record`

func newBenchCommand(a *app) *cobra.Command {
	opt := bench.Defaults()
	small, large := sizeFlag(opt.SmallSize), sizeFlag(opt.LargeSize)
	var compare string
	var list bool
	cmd := &cobra.Command{
		Use:   "bench DIR",
		Short: "Measure a mounted directory, Koinon's or any other",
		Long: `Measure a mounted directory: metadata, small files, large files, random access
and a real source tree, with one and with many workers.

It works in a fresh directory inside DIR and removes it at the end, also after
Ctrl-C. Run it as root to read cold: the kernel's caches are then dropped before
the tests that read. Every byte read is checked; a failed operation fails the
benchmark. The tests are, in order:

` + benchTests(),
		Example: benchExample,
		Args: func(cmd *cobra.Command, args []string) error {
			if list {
				return arguments(0, 0)(cmd, args)
			}
			return arguments(1, 1)(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if list {
				return a.printBenchTests()
			}
			opt.Dirs = args
			if compare != "" {
				opt.Dirs = append(opt.Dirs, compare)
			}
			opt.SmallSize, opt.LargeSize = int64(small), int64(large)
			return a.bench(cmd.Context(), opt)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&compare, "compare", "", "measure `DIR2` too, each test on both in turn, and print the ratios")
	flags.IntSliceVar(&opt.Workers, "workers", opt.Workers, "run each test with so many workers, one after the other")
	flags.StringSliceVar(&opt.Only, "only", nil, "run these `TESTS` only")
	flags.IntVar(&opt.Files, "files", opt.Files, "files of the metadata and small-file tests, over all workers")
	flags.Var(&small, "small-size", "size of a small file")
	flags.Var(&large, "large-size", "bytes of the large-file tests, over all workers")
	flags.IntVar(&opt.RandomOps, "random-ops", opt.RandomOps, "operations of the random tests, over all workers")
	flags.DurationVar(&opt.Duration, "duration", opt.Duration, "stop a test after this long, with what it has done")
	flags.StringVar(&opt.Tree, "tree", "", "source tree to copy in (default: the sources of the Go installed here)")
	flags.IntVar(&opt.TreeFiles, "tree-files", opt.TreeFiles, "copy at most so many files of it")
	flags.IntVar(&opt.Rounds, "rounds", opt.Rounds, "run each test so often")
	flags.BoolVar(&opt.Shared, "shared", false, "let all workers use one directory instead of one each")
	flags.BoolVar(&opt.Warm, "warm", false, "do not drop the kernel's caches")
	flags.BoolVar(&list, "list", false, "list the tests")
	completeWith(cmd, "only", bench.TestNames())
	return cmd
}

// completeWith lets the shell complete the values of a flag.
func completeWith(cmd *cobra.Command, flag string, values []string) {
	if err := cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(fmt.Sprintf("koinon: expected the flag --%s to exist, found %v", flag, err))
	}
}

// benchTests lists the tests for the help.
func benchTests() string {
	var b strings.Builder
	for _, name := range bench.TestNames() {
		fmt.Fprintf(&b, "  %-18s %s\n", name, bench.Describe(name))
	}
	return strings.TrimRight(b.String(), "\n")
}

func (a *app) printBenchTests() error {
	type test struct {
		Name string `json:"name"`
		What string `json:"what"`
	}
	var tests []test
	for _, name := range bench.TestNames() {
		tests = append(tests, test{name, bench.Describe(name)})
	}
	return a.print(tests, func(w io.Writer) {
		for _, t := range tests {
			row(w, t.Name, t.What)
		}
	})
}

// bench runs the benchmark and prints what it found, also when it failed.
func (a *app) bench(ctx context.Context, opt bench.Options) error {
	if opt.Tree == "" {
		if opt.Tree = bench.DefaultTree(ctx); opt.Tree == "" {
			opt.NoTreeNote = "no Go is installed here; name a source tree with --tree"
		}
	}
	opt.Command, opt.Version = append([]string{"koinon"}, os.Args[1:]...), version()
	line := a.newStatusLine()
	if line.shown() {
		opt.Progress = func(p bench.Progress) { line.set(benchProgress(p, len(opt.Dirs))) }
	}
	report, err := bench.Run(ctx, opt)
	line.clear()
	if report == nil {
		return err
	}
	if perr := a.printReport(report); perr != nil {
		return perr
	}
	return err
}

func (a *app) printReport(report *bench.Report) error {
	if !a.json() {
		return report.WriteTable(a.out)
	}
	enc := json.NewEncoder(a.out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(report)
}

func benchProgress(p bench.Progress, targets int) string {
	s := fmt.Sprintf("[%d/%d] %s, %d workers", p.Step, p.Steps, p.Test, p.Workers)
	if targets > 1 {
		s += ", target " + p.Target
	}
	if p.Elapsed > 0 {
		s += fmt.Sprintf(": %d operations, %.0f/s", p.Ops, float64(p.Ops)/p.Elapsed.Seconds())
	}
	return s
}
