package bench

import (
	"time"
)

// Report is what a run found, and everything needed to run it again.
type Report struct {
	Command       []string     `json:"command"`
	Version       string       `json:"version,omitempty"`
	Started       time.Time    `json:"started"`
	Seconds       float64      `json:"seconds"`
	Complete      bool         `json:"complete"` // every test that was asked for has run
	Machine       Machine      `json:"machine"`
	Targets       []Target     `json:"targets"`
	Settings      Settings     `json:"settings"`
	CachesDropped bool         `json:"caches_dropped"` // before the tests that say cold
	Notes         []string     `json:"notes,omitempty"`
	Results       []Result     `json:"results"`
	Comparisons   []Comparison `json:"comparisons,omitempty"`
	Errors        int          `json:"errors"` // failed operations, set-up included
}

// Machine is where the run took place.
type Machine struct {
	OS          string `json:"os"`
	Arch        string `json:"arch"`
	Kernel      string `json:"kernel,omitempty"`
	CPU         string `json:"cpu,omitempty"`
	Cores       int    `json:"cores"`
	MemoryBytes int64  `json:"memory_bytes,omitempty"`
	// Load is the load average of the minute before the run, -1 when it is not
	// known. Of a busy machine the figures mean little.
	Load float64 `json:"load"`
	Go   string  `json:"go"`
}

// Target is a measured directory and the file system that holds it.
type Target struct {
	Name         string `json:"name"` // "A" or "B"
	Dir          string `json:"dir"`
	FSType       string `json:"fs_type"`            // as the mount table calls it
	FSMagic      string `json:"fs_magic,omitempty"` // f_type of statfs(2)
	Source       string `json:"source,omitempty"`
	MountPoint   string `json:"mount_point,omitempty"`
	MountOptions string `json:"mount_options,omitempty"`
	TotalBytes   int64  `json:"total_bytes,omitempty"`
	FreeBytes    int64  `json:"free_bytes,omitempty"`
}

// Settings are the sizes of a run.
type Settings struct {
	Workers     []int   `json:"workers"`
	Files       int     `json:"files"`
	SmallBytes  int64   `json:"small_bytes"`
	LargeBytes  int64   `json:"large_bytes"`
	RandomOps   int     `json:"random_ops"`
	DurationSec float64 `json:"duration_seconds"`
	Rounds      int     `json:"rounds"`
	Shared      bool    `json:"shared_directory"`
	Tree        string  `json:"tree,omitempty"`
	TreeFiles   int     `json:"tree_files,omitempty"`
	TreeDirs    int     `json:"tree_dirs,omitempty"`
	TreeBytes   int64   `json:"tree_bytes,omitempty"`
}

// Result is one test with one number of workers on one target, all rounds
// together. Failed operations count in Errors only.
type Result struct {
	Test     string    `json:"test"`
	Target   string    `json:"target"`
	Workers  int       `json:"workers"`
	Unit     string    `json:"unit"`
	Rate     float64   `json:"rate"` // in Unit
	MiBPerS  float64   `json:"mib_per_s,omitempty"`
	Ops      int64     `json:"ops"`
	Bytes    int64     `json:"bytes,omitempty"`
	OpBytes  int64     `json:"op_bytes,omitempty"`
	Seconds  float64   `json:"seconds"`
	P50us    float64   `json:"p50_us"`
	P99us    float64   `json:"p99_us"`
	P999us   float64   `json:"p999_us"`
	MaxUs    float64   `json:"max_us"`
	Fsync    bool      `json:"fsync"`
	Cold     bool      `json:"cold"`
	Rounds   []float64 `json:"round_rates,omitempty"` // Rate of each round, when there is more than one
	Errors   int       `json:"errors"`
	Failures []string  `json:"failures,omitempty"` // the first few texts
}

// Comparison sets the two targets of a test beside one another.
type Comparison struct {
	Test     string  `json:"test"`
	Workers  int     `json:"workers"`
	Ratio    float64 `json:"ratio"`     // rate of A by rate of B
	RatioMin float64 `json:"ratio_min"` // of the rounds
	RatioMax float64 `json:"ratio_max"`
}

// newResult turns the rounds of a test into its line of the report.
func newResult(s *step, o *Options, target string, workers int, rounds []*outcome) Result {
	r := Result{Test: s.name, Target: target, Workers: workers, Unit: s.unit, Fsync: s.fsync, OpBytes: s.size(o)}
	all := &outcome{}
	for _, out := range rounds {
		all.merge(out)
		if len(rounds) > 1 {
			r.Rounds = append(r.Rounds, rateOf(s, out))
		}
	}
	us := func(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
	r.Ops, r.Bytes, r.Seconds = all.ops, all.bytes, all.elapsed.Seconds()
	r.Rate = rateOf(s, all)
	if all.elapsed > 0 {
		r.MiBPerS = float64(all.bytes) / (1 << 20) / all.elapsed.Seconds()
	}
	r.P50us, r.P99us = us(all.hist.quantile(0.50)), us(all.hist.quantile(0.99))
	r.P999us, r.MaxUs = us(all.hist.quantile(0.999)), us(all.hist.max)
	r.Errors, r.Failures = all.errs, all.samples
	return r
}

func rateOf(s *step, out *outcome) float64 {
	switch {
	case out.elapsed <= 0:
		return 0
	case s.unit == "MiB/s":
		return float64(out.bytes) / (1 << 20) / out.elapsed.Seconds()
	default:
		return float64(out.ops) / out.elapsed.Seconds()
	}
}

// compare pairs the results of two targets.
func compare(results []Result) []Comparison {
	var out []Comparison
	for _, a := range results {
		for _, b := range results {
			if a.Target != "A" || b.Target != "B" || a.Test != b.Test || a.Workers != b.Workers || b.Rate == 0 {
				continue
			}
			c := Comparison{Test: a.Test, Workers: a.Workers, Ratio: a.Rate / b.Rate}
			c.RatioMin, c.RatioMax = c.Ratio, c.Ratio
			for i := range min(len(a.Rounds), len(b.Rounds)) {
				if b.Rounds[i] > 0 {
					c.RatioMin = min(c.RatioMin, a.Rounds[i]/b.Rounds[i])
					c.RatioMax = max(c.RatioMax, a.Rounds[i]/b.Rounds[i])
				}
			}
			out = append(out, c)
		}
	}
	return out
}
