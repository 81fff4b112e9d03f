package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/koinon/koinon/internal/auth"
)

func main() {
	err := run(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "consensus:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 1 && args[0] == "replica" {
		return serveReplica()
	}
	var o options
	fs := flag.NewFlagSet("consensus", flag.ContinueOnError)
	fs.StringVar(&o.dir, "dir", "", "where the logs are: a directory on the disk to measure (default: the system's for temporary files)")
	fs.IntVar(&o.rounds, "rounds", 5, "interleaved rounds; what is printed are medians over them")
	fs.DurationVar(&o.during, "for", 2*time.Second, "how long each depth is measured in a round")
	fs.DurationVar(&o.warm, "warm", 300*time.Millisecond, "how long it is driven before that")
	fs.IntVar(&o.bytes, "bytes", 256, "size of a command")
	fs.IntVar(&o.procs, "procs", 0, "GOMAXPROCS of each replica (default: Go's own)")
	fs.StringVar(&o.out, "o", "table", "output: table or json")
	fs.BoolVar(&o.strace, "strace", false, "count the syncs with strace too, which slows everything down")
	depths := fs.String("depths", "1,16,64,256", "commands in flight")
	arms := fs.String("arms", "koinon,koinon-client,koinon-memory,hashicorp,etcd", "what to measure")
	quick := fs.Bool("quick", false, "one round of a fraction of a second each: does it work?")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if *quick {
		o.rounds, o.during, o.warm = 1, 200*time.Millisecond, 50*time.Millisecond
		*depths = "1,64"
	}
	if err := o.lists(*depths, *arms); err != nil {
		return err
	}
	rep, err := measure(o)
	if err != nil {
		return err
	}
	if o.out == "json" {
		return rep.json(os.Stdout)
	}
	return rep.table(os.Stdout)
}

// options are what the flags say.
type options struct {
	dir, out     string
	rounds       int
	during, warm time.Duration
	bytes, procs int
	depths       []int
	arms         []string
	strace       bool
}

// The arms of Koinon beside the one that is driven in the leader's process.
const (
	// viaClient drives it from another process.
	viaClient = "koinon-client"
	// inMemory has what the peers have: a state in memory, and no sessions.
	inMemory = "koinon-memory"
	// etcdServers are three servers of etcd with their defaults, without TLS,
	// driven by their own client from another process, as a user would.
	etcdServers = "etcd-server"
)

// replicated is what is measured: three replicas.
type replicated interface {
	states() ([]status, error)
	// driver returns what runs commands, and what ends that.
	driver(b *bench, name string, depth int) (func(time.Duration) (load, error), func() error, error)
	// agree proves that all replicas have the same, and no less than was
	// acknowledged.
	agree(acked, lost uint64) (status, error)
	stop() error
	kill() error
}

// start starts three replicas of a library.
func (b *bench) start(library, dir string) (replicated, error) {
	if library == etcdServers {
		return startServers(dir)
	}
	return b.startGroup(library, dir)
}

// lists reads the flags that hold several values and checks the others.
func (o *options) lists(depths, arms string) error {
	for _, s := range strings.Split(depths, ",") {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			return fmt.Errorf("-depths: %q is no number of commands in flight", s)
		}
		o.depths = append(o.depths, n)
	}
	for _, s := range strings.Split(arms, ",") {
		switch s {
		case "koinon", viaClient, inMemory, "hashicorp", "etcd":
			o.arms = append(o.arms, s)
		case etcdServers:
			if !hasServers {
				_, err := startServers("")
				return err
			}
			o.arms = append(o.arms, s)
		default:
			return fmt.Errorf("-arms: %q is none of koinon, koinon-client, koinon-memory, hashicorp, etcd, etcd-server", s)
		}
	}
	switch {
	case o.out != "table" && o.out != "json":
		return fmt.Errorf("-o: table or json expected, found %q", o.out)
	case o.rounds < 1 || o.during <= 0:
		return errors.New("-rounds and -for must be above 0")
	case o.bytes < commandMin:
		return fmt.Errorf("-bytes: a command has at least %d bytes", commandMin)
	}
	return nil
}

// bench is a benchmark that runs.
type bench struct {
	opts   options
	self   string // our own program
	dir    string
	client *auth.Credentials
	report *report
}

// measure runs all rounds.
func measure(o options) (_ *report, err error) {
	b := &bench{opts: o, report: newReport(o)}
	if b.self, err = os.Executable(); err != nil {
		return nil, err
	}
	if b.dir, err = os.MkdirTemp(o.dir, "consensus-bench"); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	if err := b.issue(); err != nil {
		return nil, err
	}
	for i := range o.rounds {
		if err := b.round(i); err != nil {
			return nil, fmt.Errorf("round %d: %w", i+1, err)
		}
	}
	return b.report, nil
}

// round measures the disk and then each library once. Who is first changes.
func (b *bench) round(i int) error {
	d, err := measureDisk(b.dir, b.opts.bytes)
	if err != nil {
		return err
	}
	b.report.disks = append(b.report.disks, d)
	libs := b.libraries()
	for k := range libs {
		lib := libs[(i+k)%len(libs)]
		fmt.Fprintf(os.Stderr, "round %d of %d: %s\n", i+1, b.opts.rounds, lib[0])
		if err := b.library(lib); err != nil {
			return err
		}
	}
	return nil
}

// libraries groups the arms by what they drive.
func (b *bench) libraries() [][]string {
	var libs [][]string
	for _, a := range b.opts.arms {
		if n := len(libs); n > 0 && libraryOf(a) == libraryOf(libs[n-1][0]) {
			libs[n-1] = append(libs[n-1], a)
			continue
		}
		libs = append(libs, []string{a})
	}
	return libs
}

// libraryOf names the library that an arm drives.
func libraryOf(a string) string {
	return strings.TrimSuffix(strings.TrimSuffix(a, "-client"), "-memory")
}

// library measures the arms of one library on one group.
func (b *bench) library(arms []string) (err error) {
	name := libraryOf(arms[0])
	dir, err := os.MkdirTemp(b.dir, name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	g, err := b.start(name, dir)
	if err != nil {
		return err
	}
	var total tally
	for _, depth := range b.opts.depths {
		for _, a := range arms {
			if err := b.depth(g, a, depth, &total); err != nil {
				return errors.Join(fmt.Errorf("%s with %d in flight: %w", a, depth, err), g.kill())
			}
		}
	}
	end, err := g.agree(total.acked, total.lost)
	if err != nil {
		return errors.Join(err, g.kill())
	}
	st, err := g.states()
	if err != nil {
		return errors.Join(err, g.kill())
	}
	if err := g.stop(); err != nil {
		return err
	}
	p := proof{Arm: name, Commands: end.Applied, Digest: fmt.Sprintf("%016x", end.Digest)}
	for _, s := range st {
		p.Syncs += s.Syncs
	}
	if b.opts.strace && name != etcdServers {
		if p.Traced, err = straced(dir); err != nil {
			return err
		}
	}
	b.report.proofs = append(b.report.proofs, p)
	return nil
}

// tally counts what a group was asked to do.
type tally struct{ acked, lost uint64 }

// attempts is how often a depth is measured when leadership changes meanwhile.
const attempts = 3

// depth measures one arm with some commands in flight.
func (b *bench) depth(g replicated, name string, depth int, t *tally) error {
	var err error
	for range attempts {
		var s sample
		if s, err = b.once(g, name, depth, t); err == nil {
			b.report.add(s)
			return nil
		}
		fmt.Fprintf(os.Stderr, "%s with %d in flight: measured again after: %v\n", name, depth, err)
		t.lost += uint64(depth)
	}
	return err
}

func (b *bench) once(g replicated, name string, depth int, t *tally) (sample, error) {
	drive, end, err := g.driver(b, name, depth)
	if err != nil {
		return sample{}, err
	}
	out, err := b.between(g, name, depth, drive, t)
	return out, errors.Join(err, end())
}

// between warms up and measures, and takes what was used in between.
func (b *bench) between(g replicated, name string, depth int, drive func(time.Duration) (load, error), t *tally) (sample, error) {
	s := sample{Arm: name, Depth: depth}
	warm, err := drive(b.opts.warm)
	t.acked += warm.Ops
	if err != nil {
		return s, err
	}
	before, err := g.states()
	if err != nil {
		return s, err
	}
	own, err := usage()
	if err != nil {
		return s, err
	}
	s.load, err = drive(b.opts.during)
	t.acked += s.load.Ops
	if err != nil {
		return s, err
	}
	ownAfter, err := usage()
	if err != nil {
		return s, err
	}
	after, err := g.states()
	if err != nil {
		return s, err
	}
	s.client = ownAfter - own
	for i := range after {
		s.cpu += after[i].CPU - before[i].CPU
		s.allocated += after[i].Allocated - before[i].Allocated
		s.syncs += after[i].Syncs - before[i].Syncs
	}
	return s, nil
}

// driver implements replicated: commands are run in the leader's process, or
// here through Koinon's client.
func (g *group) driver(b *bench, name string, depth int) (func(time.Duration) (load, error), func() error, error) {
	if name != viaClient {
		p, err := g.leader()
		return func(d time.Duration) (load, error) {
			r, err := p.ask(request{Op: "load", Arm: name, Depth: depth, For: d, Bytes: b.opts.bytes})
			return r.Load, err
		}, func() error { return nil }, err
	}
	if _, err := g.leader(); err != nil {
		return nil, nil, err
	}
	ctx := context.Background()
	r, err := dialRemote(b.client, g.addrs)
	if err != nil {
		return nil, nil, err
	}
	propose, end, err := r.client(ctx)
	if err != nil {
		return nil, nil, errors.Join(err, r.c.Close())
	}
	return func(d time.Duration) (load, error) { return drive(depth, b.opts.bytes, d, propose) },
		func() error { return errors.Join(end(), r.c.Close()) }, nil
}
