package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// signalNames are the signals of Linux (signal(7)), which the nodes run, by
// number.
var signalNames = []string{
	"0", "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
	"STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
}

// signalMax is the highest real-time signal.
const signalMax = 64

// parseSignal reads a signal: TERM, SIGTERM or 15.
func parseSignal(s string) (int, error) {
	if n, err := strconv.Atoi(s); err == nil && n >= 1 && n <= signalMax {
		return n, nil
	}
	if n := slices.Index(signalNames, strings.TrimPrefix(strings.ToUpper(s), "SIG")); n > 0 {
		return n, nil
	}
	return 0, fmt.Errorf("there is no signal %q: give a name such as TERM, or a number from 1 to %d", s, signalMax)
}

// signalName is the name of a signal: SIGTERM.
func signalName(n int) string {
	if n > 0 && n < len(signalNames) {
		return "SIG" + signalNames[n]
	}
	return fmt.Sprintf("signal %d", n)
}
