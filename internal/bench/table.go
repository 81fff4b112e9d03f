package bench

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// WriteTable writes the report for people: where it was, one line per test,
// and what went wrong.
func (r *Report) WriteTable(w io.Writer) error {
	p := &printer{w: w}
	r.writeHead(p)
	if len(r.Targets) == 2 {
		r.writeComparison(p)
	} else {
		r.writeResults(p)
	}
	r.writeTail(p)
	return p.err
}

// A printer keeps the first error of many writes.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) printf(format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, format, args...)
	}
}

// testWidth is that of the longest name of a test.
const testWidth = len("write-small-fsync")

// table lets fill write rows of cells that end in tabs, and aligns them.
func (p *printer) table(fill func(row func(cells ...string))) {
	if p.err != nil {
		return
	}
	tw := tabwriter.NewWriter(p.w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fill(func(cells ...string) {
		cells[0] = fmt.Sprintf("%-*s", testWidth, cells[0]) // the one column that starts at the left
		if p.err == nil {
			_, p.err = io.WriteString(tw, strings.Join(cells, "\t")+"\t\n")
		}
	})
	if err := tw.Flush(); p.err == nil {
		p.err = err
	}
}

func (r *Report) writeHead(p *printer) {
	m := r.Machine
	if len(r.Command) > 0 {
		p.printf("command  %s\n", quoteCommand(r.Command))
	}
	p.printf("machine  %d cores, %s of memory, %s, %s/%s", m.Cores, formatBytes(m.MemoryBytes), m.Kernel, m.OS, m.Arch)
	if m.CPU != "" {
		p.printf(", %s", m.CPU)
	}
	if m.Load >= 0 {
		p.printf(", load %.2f before", m.Load)
	}
	p.printf("\n")
	for _, t := range r.Targets {
		p.printf("target %s %s (%s", t.Name, t.Dir, t.FSType)
		if t.Source != "" && t.Source != t.FSType {
			p.printf(" on %s", t.Source)
		}
		p.printf(")\n")
	}
	s := r.Settings
	dirs := "a directory per worker"
	if s.Shared {
		dirs = "one directory for all workers"
	}
	p.printf("sizes    %d files in %s, small %s, large %s", s.Files, dirs, formatBytes(s.SmallBytes), formatBytes(s.LargeBytes))
	if s.Tree != "" {
		p.printf(", tree of %d files, %d directories, %s", s.TreeFiles, s.TreeDirs, formatBytes(s.TreeBytes))
	}
	p.printf("\n\n")
}

func (r *Report) writeResults(p *printer) {
	p.table(func(row func(...string)) {
		row("test", "workers", "size", "fsync", "cold", "rate", "", "MiB/s", "p50", "p99", "ops", "errors")
		for _, x := range r.Results {
			mib := "-"
			if x.Bytes > 0 {
				mib = formatRate(x.MiBPerS)
			}
			row(x.Test, strconv.Itoa(x.Workers), sizeCell(x.OpBytes), yes(x.Fsync), yes(x.Cold), formatRate(x.Rate), x.Unit,
				mib, formatMicros(x.P50us), formatMicros(x.P99us), strconv.FormatInt(x.Ops, 10), strconv.Itoa(x.Errors))
		}
	})
}

func (r *Report) writeComparison(p *printer) {
	find := func(c Comparison, target string) Result {
		for _, x := range r.Results {
			if x.Test == c.Test && x.Workers == c.Workers && x.Target == target {
				return x
			}
		}
		return Result{}
	}
	spread := func(cells ...string) string { // of the ratio, where there is one
		if r.Settings.Rounds < 2 {
			return "-"
		}
		return strings.Join(cells, "-")
	}
	p.table(func(row func(...string)) {
		row("test", "workers", "size", "fsync", "cold", "A", "B", "", "A/B", "of rounds", "A p50", "B p50", "A p99", "B p99", "errors")
		for _, c := range r.Comparisons {
			a, b := find(c, "A"), find(c, "B")
			row(a.Test, strconv.Itoa(a.Workers), sizeCell(a.OpBytes), yes(a.Fsync), yes(a.Cold), formatRate(a.Rate), formatRate(b.Rate), a.Unit,
				formatRatio(c.Ratio), spread(formatRatio(c.RatioMin), formatRatio(c.RatioMax)), formatMicros(a.P50us), formatMicros(b.P50us),
				formatMicros(a.P99us), formatMicros(b.P99us), strconv.Itoa(a.Errors+b.Errors))
		}
	})
}

func (r *Report) writeTail(p *printer) {
	p.printf("\n")
	if r.CachesDropped {
		p.printf("note: the kernel's caches were dropped before each test that says cold; a file system's own daemons keep theirs\n")
	}
	for _, n := range r.Notes {
		p.printf("note: %s\n", n)
	}
	for _, x := range r.Results {
		for _, f := range x.Failures {
			p.printf("failed: %s, %d workers, target %s: %s\n", x.Test, x.Workers, x.Target, f)
		}
	}
	if !r.Complete {
		p.printf("note: the run was stopped before its end\n")
	}
	p.printf("took %s\n", time.Duration(r.Seconds*float64(time.Second)).Round(time.Second/10))
}

// quoteCommand writes a command line so that a shell reads it back.
func quoteCommand(args []string) string {
	quoted := make([]string, len(args))
	for i, a := range args {
		if a == "" || strings.ContainsAny(a, " \t\n'\"\\$`*?[]{}()<>|&;!#~") {
			a = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
		quoted[i] = a
	}
	return strings.Join(quoted, " ")
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func sizeCell(n int64) string {
	if n == 0 {
		return "-"
	}
	return formatBytes(n)
}

// formatBytes writes n with the largest unit that leaves at least 1.
func formatBytes(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	v, i := float64(n), 0
	for v >= 1024 && i < len(units)-1 {
		v, i = v/1024, i+1
	}
	return strings.TrimSuffix(strconv.FormatFloat(v, 'f', 1, 64), ".0") + " " + units[i]
}

// formatRate writes three significant digits or all before the point, with
// commas.
func formatRate(v float64) string {
	switch {
	case v < 10:
		return strconv.FormatFloat(v, 'f', 2, 64)
	case v < 100:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	s := strconv.FormatFloat(v, 'f', 0, 64)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// formatRatio writes at least two significant digits.
func formatRatio(v float64) string {
	digits := 2
	for x := v; x > 0 && x < 0.1 && digits < 5; x *= 10 {
		digits++
	}
	return strconv.FormatFloat(v, 'f', digits, 64) + "x"
}

func formatMicros(us float64) string {
	switch {
	case us >= 1e6:
		return strconv.FormatFloat(us/1e6, 'f', 2, 64) + " s"
	case us >= 1e4:
		return strconv.FormatFloat(us/1e3, 'f', 1, 64) + " ms"
	case us >= 1e3:
		return strconv.FormatFloat(us/1e3, 'f', 2, 64) + " ms"
	case us >= 10:
		return strconv.FormatFloat(us, 'f', 0, 64) + " µs"
	}
	return strconv.FormatFloat(us, 'f', 1, 64) + " µs"
}
