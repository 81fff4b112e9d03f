package main

import (
	"bytes"
	"encoding/json"
	"io"
	"strings"
	"unicode/utf8"

	"github.com/koinon/koinon"
)

// tagged writes what processes have written: as it is where the name that was
// asked for is that of the process, else line by line, each with the rest of
// the process's name before it. Lines of different processes are not mixed.
type tagged struct {
	name     string // that was asked for
	json     bool   // each line is an outputLine, on out
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

// outputLine is a line of output as -o json prints it, without its end. What is
// not UTF-8 is in base64.
type outputLine struct {
	Process string  `json:"process"`
	Stream  string  `json:"stream"` // stdout or stderr
	Text    *string `json:"text,omitempty"`
	Base64  []byte  `json:"base64,omitempty"`
}

// write writes a piece of output; Follow and Logs take it.
func (t *tagged) write(c koinon.Chunk) error {
	if c.End {
		return t.end(c)
	}
	if c.Stderr && t.skipErr || !c.Stderr && t.skipOut {
		return nil
	}
	s := stream{c.Process, c.Stderr}
	if c.Process == t.name && !t.json {
		_, err := t.to(s).Write(c.Data)
		return err
	}
	if t.partial == nil {
		t.partial = map[stream][]byte{}
	}
	held := append(t.partial[s], c.Data...)
	whole := bytes.LastIndexByte(held, '\n') + 1
	if whole == 0 && len(held) >= lineMax {
		held = append(held, '\n')
		whole = len(held)
	}
	t.partial[s] = bytes.Clone(held[whole:])
	return t.lines(s, held[:whole])
}

// to is where a stream goes.
func (t *tagged) to(s stream) io.Writer {
	if s.stderr && !t.json {
		return t.err
	}
	return t.out
}

// lines writes whole lines in one write.
func (t *tagged) lines(s stream, lines []byte) error {
	if len(lines) == 0 {
		return nil
	}
	var b bytes.Buffer
	for line := range bytes.Lines(lines) {
		if t.json {
			if err := encodeLine(&b, s, line[:len(line)-1]); err != nil {
				return err
			}
			continue
		}
		b.WriteString("[" + t.tag(s.process) + "] ")
		b.Write(line)
	}
	_, err := t.to(s).Write(b.Bytes())
	return err
}

func encodeLine(w io.Writer, s stream, line []byte) error {
	out := outputLine{Process: s.process, Stream: "stdout"}
	if s.stderr {
		out.Stream = "stderr"
	}
	if utf8.Valid(line) {
		text := string(line)
		out.Text = &text
	} else {
		out.Base64 = line
	}
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(out)
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
		if err := t.lines(s, append(held, '\n')); err != nil {
			return err
		}
	}
	return nil
}
