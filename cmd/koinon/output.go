package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"text/tabwriter"

	"golang.org/x/term"
)

// outputFormat is the value of -o.
type outputFormat string

const (
	formatTable = "table"
	formatJSON  = "json"
)

// String implements pflag.Value.
func (f *outputFormat) String() string {
	if *f == "" {
		return formatTable
	}
	return string(*f)
}

// Set implements pflag.Value.
func (f *outputFormat) Set(s string) error {
	if s != formatTable && s != formatJSON {
		return fmt.Errorf("%q is neither table nor json", s)
	}
	*f = outputFormat(s)
	return nil
}

// Type implements pflag.Value.
func (f *outputFormat) Type() string { return "FORMAT" }

// json reports whether the user asked for JSON.
func (a *app) json() bool { return a.output == formatJSON }

// print writes value as JSON when -o json was given, else what table writes.
// Within table, cells end with a tab and rows with a newline; columns align.
func (a *app) print(value any, table func(w io.Writer)) error {
	if a.json() {
		enc := json.NewEncoder(a.out)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		return enc.Encode(value)
	}
	out := bufio.NewWriter(a.out) // a tabwriter writes each cell by itself
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', tabwriter.StripEscape)
	table(w)
	return errors.Join(w.Flush(), out.Flush())
}

// row writes one row of a table.
func row(w io.Writer, cells ...any) {
	line := make([]byte, 0, 128)
	for i, c := range cells {
		if i > 0 {
			line = append(line, '\t')
		}
		before := len(line)
		if line = fmt.Append(line, c); len(line) == before {
			line = append(line, '-')
		}
	}
	// The writer is a tabwriter, which keeps its error for Flush.
	_, _ = w.Write(append(line, '\n'))
}

// result is standard output, which remembers that it could not be written: no
// command has done its work whose result got lost. Methods may be called
// concurrently.
type result struct {
	io.Writer

	mu  sync.Mutex
	err error // the first one
}

// Write implements io.Writer.
func (r *result) Write(p []byte) (int, error) {
	n, err := r.Writer.Write(p)
	if err != nil {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.err == nil {
			r.err = err
		}
	}
	return n, err
}

// lost says why some of the result could not be written; nil: all of it was.
func (a *app) lost() error {
	r, ok := a.out.(*result)
	if !ok {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil {
		return nil
	}
	cause := r.err
	if pe, ok := errors.AsType[*fs.PathError](cause); ok {
		cause = pe.Err
	}
	return &toldError{fmt.Sprintf("cannot write to standard output: %v", cause), r.err}
}

// bare is what a result is written to.
func bare(w io.Writer) io.Writer {
	if r, ok := w.(*result); ok {
		return r.Writer
	}
	return w
}

// isTerminal reports whether a reader or writer is a terminal.
func isTerminal(w any) bool {
	if out, ok := w.(*result); ok {
		w = out.Writer
	}
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// fit cuts a line at n characters, so that it stays one line.
func fit(line string, n int) string {
	runes := []rune(line)
	switch {
	case len(runes) <= n:
		return line
	case n <= 0:
		return ""
	}
	return string(runes[:n-1]) + "…"
}

// byteSize writes a number of bytes for people: "1.5 GiB".
func byteSize(n uint64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, i := float64(n)/1024, 0
	for ; v >= 1023.95 && i < len(units)-1; i++ {
		v /= 1024
	}
	return fmt.Sprintf("%.1f %ciB", v, units[i])
}
