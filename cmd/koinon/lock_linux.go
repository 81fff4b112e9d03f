package main

import (
	"errors"
	"os"
	"os/exec"
	"syscall"

	"github.com/koinon/koinon/internal/program"
)

// prepareGuarded has the command die with koinon, and gives it a process group
// of its own when group is set.
func prepareGuarded(cmd *exec.Cmd, group bool) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: group}
}

// defaultTimers are for the command, which this thread starts.
func defaultTimers() { program.DefaultTimers() }

// signalGuarded signals the command, and with group all that it started.
func signalGuarded(cmd *exec.Cmd, sig syscall.Signal, group bool) error {
	if !group {
		return cmd.Process.Signal(sig)
	}
	// The group outlives its first process, and its number is not given out
	// again before all of it has ended.
	err := syscall.Kill(-cmd.Process.Pid, sig)
	if errors.Is(err, syscall.ESRCH) {
		return os.ErrProcessDone
	}
	return err
}
