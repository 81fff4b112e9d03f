package main

import (
	"fmt"
	"io"
	"runtime"
	"sync"
)

// A statusLine is one line at the bottom of a terminal that is written over.
// One that is not shown does nothing. Methods may be called concurrently.
type statusLine struct {
	w io.Writer // nil when not shown

	mu    sync.Mutex
	width int // of what is on the terminal now
}

// newStatusLine shows nothing with --quiet or when standard error is no
// terminal.
func (a *app) newStatusLine() *statusLine {
	if a.quiet || !isTerminal(a.err) || runtime.GOOS == "windows" {
		return &statusLine{}
	}
	return &statusLine{w: a.err}
}

func (l *statusLine) shown() bool { return l.w != nil }

// set replaces the line. Errors of the terminal must not stop the work.
func (l *statusLine) set(s string) {
	if l.w == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	s = fit(s, terminalWidth(l.w)-1)
	_, _ = fmt.Fprintf(l.w, "\r%-*s", l.width, s)
	l.width = max(len([]rune(s)), l.width)
}

// clear takes the line away.
func (l *statusLine) clear() {
	if l.w == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.width > 0 {
		_, _ = fmt.Fprintf(l.w, "\r%*s\r", l.width, "")
		l.width = 0
	}
}
