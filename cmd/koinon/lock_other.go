//go:build !linux

package main

import (
	"os/exec"
	"syscall"
)

// prepareGuarded does what there is to do elsewhere than on Linux: nothing.
func prepareGuarded(*exec.Cmd, bool) {}

// signalGuarded signals the command.
func signalGuarded(cmd *exec.Cmd, sig syscall.Signal, _ bool) error { return cmd.Process.Signal(sig) }

func defaultTimers() {}
