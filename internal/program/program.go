//go:build linux

// Package program is about the two programs in the one file: the client's, which
// holds what reaches a cluster from outside, and the node's, which holds everything.
// What a program is linked with is started each time that it is, before its main
// function, and a node's parts take twice as long for that as a client's together
// (docs/decisions/0022-two-programs.md). Command join makes the file; a build of
// cmd/koinon that was not joined is the node's program alone, and complete.
//
// The kernel begins a joined file with the client's program, unless the first
// variable of its environment is Node. What a joined file runs has timers that may be
// late, see TimerSlack.
package program

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	variable = "KOINON_PROGRAM"
	// Node is the first variable of the environment that asks for the node's program.
	Node = variable + "=node"
)

// Take tells whether the node's program of a joined file was asked for, and hides it
// from what is started later. Call it first in main.
func Take() bool {
	asked := os.Getenv(variable) != ""
	if asked {
		_ = os.Unsetenv(variable) // fails for bad names only
	}
	return asked
}

// Become executes the node's program of this file in place of the client's, with the
// same arguments, environment, open files and PID. It returns only with an error.
func Become() error {
	env := os.Environ()
	if len(env) > 0 && env[0] == Node {
		return errors.New("this file holds the client's program alone: `make build` makes the one with both, and go build without -tags client the node's, which has all commands")
	}
	env = slices.DeleteFunc(env, func(v string) bool { return strings.HasPrefix(v, variable+"=") })
	env = append(append([]string{Node}, env...), Node) // the last one is the first where an emulator turns the order round
	path, err := Self()
	if err == nil {
		err = unix.Exec(path, os.Args, env)
	}
	return fmt.Errorf("run the node's program in this file: %w", err)
}

// running is what this process runs, also when its file was removed, or another one is there by now (proc(5)).
const running = "/proc/self/exe"

// Self is the path by which what this process runs is run again now: that of its file, where that is still the same.
func Self() (string, error) {
	path, err := os.Executable()
	if err != nil { // without /proc
		if path, err = exec.LookPath(os.Args[0]); err != nil {
			return "", fmt.Errorf("/proc is not mounted, and it is not found as %q: %w", os.Args[0], err)
		}
		return path, nil
	}
	is, err := os.Stat(running)
	if err != nil {
		return "", err
	}
	if at, err := os.Stat(path); err != nil || !os.SameFile(is, at) {
		return running, nil
	}
	return path, nil
}
