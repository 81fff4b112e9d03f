package main

import (
	"bytes"
	"io"
	"strings"

	"github.com/koinon/koinon"
)

// tagged writes what processes have written: as it is where the name that was
// asked for is that of the process, else line by line, each with the rest of
// the process's name before it. Lines of different processes are not mixed.
type tagged struct {
	name     string // that was asked for
	out, err io.Writer
	skipOut  bool // standard output is not wanted
	skipErr  bool
	partial  map[stream][]byte // lines whose ends have not been seen
}

type stream struct {
	process string
	stderr  bool
}

// lineMax is how long a line is kept back for its end, in bytes.
const lineMax = 64 << 10

// write writes a piece of output; Follow and Logs take it.
func (t *tagged) write(c koinon.Chunk) error {
	if c.End {
		return t.end(c)
	}
	w := t.out
	if c.Stderr {
		w = t.err
	}
	if c.Stderr && t.skipErr || !c.Stderr && t.skipOut {
		return nil
	}
	if c.Process == t.name {
		_, err := w.Write(c.Data)
		return err
	}
	if t.partial == nil {
		t.partial = map[stream][]byte{}
	}
	s := stream{c.Process, c.Stderr}
	held := append(t.partial[s], c.Data...)
	whole := bytes.LastIndexByte(held, '\n') + 1
	if whole == 0 && len(held) >= lineMax {
		held = append(held, '\n')
		whole = len(held)
	}
	t.partial[s] = bytes.Clone(held[whole:])
	return t.lines(w, c.Process, held[:whole])
}

// lines writes whole lines in one write.
func (t *tagged) lines(w io.Writer, process string, lines []byte) error {
	if len(lines) == 0 {
		return nil
	}
	var b bytes.Buffer
	for line := range bytes.Lines(lines) {
		b.WriteString("[" + t.tag(process) + "] ")
		b.Write(line)
	}
	_, err := w.Write(b.Bytes())
	return err
}

// tag is what the name of a process has beyond the job's: 4, 1, or 4:1.
func (t *tagged) tag(process string) string {
	if at := strings.IndexAny(process, ".:"); at >= 0 {
		return process[at+1:]
	}
	return process
}

// end writes the last line of a process that has no end.
func (t *tagged) end(c koinon.Chunk) error {
	for _, stderr := range []bool{false, true} {
		s := stream{c.Process, stderr}
		held := t.partial[s]
		delete(t.partial, s)
		if len(held) == 0 {
			continue
		}
		w := t.out
		if stderr {
			w = t.err
		}
		if err := t.lines(w, c.Process, append(held, '\n')); err != nil {
			return err
		}
	}
	return nil
}
