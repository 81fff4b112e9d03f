//go:build linux && !client

package main

import (
	"fmt"
	"strings"

	"github.com/koinon/koinon/internal/devcluster"
)

// watchLine shows a cluster's status in one line: redrawn on a terminal,
// elsewhere printed again when it changes.
type watchLine struct {
	app   *app
	live  bool
	shown string
}

func newWatchLine(a *app) *watchLine { return &watchLine{app: a, live: isTerminal(a.out)} }

// show shows s.
func (l *watchLine) show(s *devcluster.Status) {
	line := statusWords(s)
	if line == l.shown || l.app.quiet {
		return
	}
	l.shown = line
	if !l.live {
		fmt.Fprintln(l.app.out, line)
		return
	}
	fmt.Fprintf(l.app.out, "\r\x1b[K%s", fit(line, terminalWidth(l.app.out)-1))
}

// end leaves the line and starts a new one.
func (l *watchLine) end() {
	if l.live && l.shown != "" {
		fmt.Fprintln(l.app.out)
	}
}

// statusWords writes a status in one line.
func statusWords(s *devcluster.Status) string {
	var parts []string
	for _, n := range s.Nodes {
		word := string(n.State)
		if n.State == devcluster.StateUp {
			word = string(n.Role)
		}
		if n.Trouble != "" {
			word += " in trouble"
		}
		parts = append(parts, fmt.Sprintf("node %d %s", n.Number, word))
	}
	mount := "mount down"
	if s.Mounted {
		mount = "mounted"
	}
	return strings.Join(append(parts, mount), "  |  ")
}
