package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"slices"
	"text/tabwriter"
	"time"
)

// sample is what one arm gave at one depth in one round.
type sample struct {
	Arm   string
	Depth int
	load
	cpu, client      time.Duration // of the replicas, and of the process that drives the client
	allocated, syncs uint64        // of the replicas
}

// proof is how a group ended.
type proof struct {
	Arm      string `json:"arm"`
	Commands uint64 `json:"commands"` // applied by each of the three replicas
	Digest   string `json:"digest"`   // of all of them
	Syncs    uint64 `json:"syncs"`    // of the three, by the stores' own count
	Traced   uint64 `json:"syncs_by_strace,omitempty"`
}

type report struct {
	opts    options
	disks   []disk
	samples []sample
	proofs  []proof
}

func newReport(o options) *report { return &report{opts: o} }

func (r *report) add(s sample) { r.samples = append(r.samples, s) }

// row is one line of the table: medians over rounds.
type row struct {
	Arm       string    `json:"arm"`
	Depth     int       `json:"in_flight"`
	Ops       float64   `json:"ops_per_s"`
	P50       float64   `json:"p50_us"`
	P99       float64   `json:"p99_us"`
	Syncs     float64   `json:"syncs_per_s"` // over the three replicas
	Allocated float64   `json:"bytes_allocated_per_op"`
	CPU       float64   `json:"cpu_us_per_op"` // of the three replicas
	Client    float64   `json:"client_cpu_us_per_op,omitempty"`
	Rounds    []float64 `json:"rounds_ops_per_s"`
}

func median[T cmp.Ordered](v []T) T {
	slices.Sort(v)
	return v[len(v)/2]
}

// us is a time in µs.
func us(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }

// rows returns the lines, by depth and then in the order of the arms.
func (r *report) rows() []row {
	var out []row
	for _, depth := range r.opts.depths {
		for _, a := range r.opts.arms {
			out = append(out, r.row(a, depth))
		}
	}
	return out
}

func (r *report) row(name string, depth int) row {
	out := row{Arm: name, Depth: depth}
	of := func(fn func(s sample) float64) float64 {
		var v []float64
		for _, s := range r.samples {
			if s.Arm == name && s.Depth == depth {
				v = append(v, fn(s))
			}
		}
		return median(v)
	}
	out.Ops = of(func(s sample) float64 { out.Rounds = append(out.Rounds, s.rate()); return s.rate() })
	out.P50 = of(func(s sample) float64 { return us(s.P50) })
	out.P99 = of(func(s sample) float64 { return us(s.P99) })
	out.Syncs = of(func(s sample) float64 { return float64(s.syncs) / s.Took.Seconds() })
	out.Allocated = of(func(s sample) float64 { return float64(s.allocated) / float64(s.Ops) })
	out.CPU = of(func(s sample) float64 { return us(s.cpu) / float64(s.Ops) })
	if name == viaClient || name == etcdServers {
		out.Client = of(func(s sample) float64 { return us(s.client) / float64(s.Ops) })
	}
	return out
}

// ratio is one of the figures that Koinon is held to.
type ratio struct {
	What  string  `json:"what"`
	Depth int     `json:"in_flight"`
	Found float64 `json:"found"`
	Aim   float64 `json:"aim"` // at least; of the latency at most
	Met   bool    `json:"met"`
}

// ratios compares what was measured with what is aimed at. The ratio of two
// arms is the median over rounds of the ratios within a round.
func (r *report) ratios() []ratio {
	var out []ratio
	add := func(what string, depth int, found, aim float64, atMost bool) {
		if found > 0 {
			out = append(out, ratio{what, depth, found, aim, found >= aim && !atMost || found <= aim && atMost})
		}
	}
	for _, d := range r.opts.depths {
		for _, a := range []string{"koinon", viaClient, inMemory} {
			aim := 1.0
			if d >= 64 {
				aim = 3
			}
			add(a+" / hashicorp", d, r.within(a, "hashicorp", d), aim, false)
			add(a+" / etcd's raft", d, r.within(a, "etcd", d), 1, false)
		}
		add(viaClient+" / "+etcdServers, d, r.within(viaClient, etcdServers, d), 3, false)
	}
	if slices.Contains(r.opts.depths, 1) {
		sync := us(r.disk().sync)
		for _, a := range r.opts.arms {
			add(a+" p50 / fdatasync", 1, r.row(a, 1).P50/sync, 2.5, true)
		}
	}
	return out
}

// disk is the median over rounds.
func (r *report) disk() disk {
	of := func(pick func(disk) time.Duration) time.Duration {
		var all []time.Duration
		for _, d := range r.disks {
			all = append(all, pick(d))
		}
		return median(all)
	}
	return disk{of(func(d disk) time.Duration { return d.sync }), of(func(d disk) time.Duration { return d.paused }), of(func(d disk) time.Duration { return d.majority })}
}

// within is the median over rounds of a's rate over b's, 0 when one is missing.
func (r *report) within(a, b string, depth int) float64 {
	rates := func(name string) (v []float64) {
		for _, s := range r.samples {
			if s.Arm == name && s.Depth == depth {
				v = append(v, s.rate())
			}
		}
		return v
	}
	x, y := rates(a), rates(b)
	if len(x) == 0 || len(x) != len(y) {
		return 0
	}
	for i := range x {
		x[i] /= y[i]
	}
	return median(x)
}

func (r *report) json(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(map[string]any{"cpus": runtime.NumCPU(), "procs": r.opts.procs, "command_bytes": r.opts.bytes, "rounds": r.opts.rounds,
		"seconds": r.opts.during.Seconds(), "fdatasync_us": us(r.disk().sync), "fdatasync_after_a_pause_us": us(r.disk().paused), "second_of_three_fdatasyncs_us": us(r.disk().majority),
		"rows": r.rows(), "ratios": r.ratios(), "proofs": r.proofs})
}

func (r *report) table(w io.Writer) error {
	fmt.Fprintf(w, "%d CPUs; three processes, mutual TLS on loopback, every command durable on a majority; commands of %d bytes;\n", runtime.NumCPU(), r.opts.bytes)
	d := r.disk()
	fmt.Fprintf(w, "%d rounds of %v; one fdatasync of this disk %v, after a pause of %v %v, the second of three at once then %v (medians)\n\n",
		r.opts.rounds, r.opts.during, d.sync.Round(time.Microsecond), pause, d.paused.Round(time.Microsecond), d.majority.Round(time.Microsecond))
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "in flight\tarm\tops/s\tp50 µs\tp99 µs\tsyncs/s\talloc B/op\tCPU µs/op\tclient CPU µs/op\tops/s from-to\t")
	for _, l := range r.rows() {
		client := "-"
		if l.Client > 0 {
			client = fmt.Sprintf("%.0f", l.Client)
		}
		fmt.Fprintf(t, "%d\t%s\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f\t%s\t%.0f-%.0f\t\n", l.Depth, l.Arm, l.Ops, l.P50, l.P99, l.Syncs, l.Allocated, l.CPU, client,
			slices.Min(l.Rounds), slices.Max(l.Rounds))
	}
	fmt.Fprintln(t, "\t\t\t\t\t\t\t\t\t\t")
	fmt.Fprintln(t, "in flight\tagainst\tratio\taim\tmet\t\t\t\t\t\t")
	for _, x := range r.ratios() {
		met := "yes"
		if !x.Met {
			met = "NO"
		}
		fmt.Fprintf(t, "%d\t%s\t%.2f\t%.1f\t%s\t\t\t\t\t\t\n", x.Depth, x.What, x.Found, x.Aim, met)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(w, "\nThree replicas agreed at the end of each round:")
	for _, p := range r.proofs {
		fmt.Fprintf(w, "%s: %d commands, digest %s, %d syncs", p.Arm, p.Commands, p.Digest, p.Syncs)
		if p.Traced > 0 {
			fmt.Fprintf(w, " (%d by strace)", p.Traced)
		}
		fmt.Fprintln(w)
	}
	return nil
}
