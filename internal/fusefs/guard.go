package fusefs

import (
	"io"
	"log/slog"
	"os/exec"
	"syscall"
)

// guardScript waits until its standard input ends, which is when the process
// that mounted is gone, and then takes the mount away if it is dead.
const guardScript = `cat >/dev/null; stat "$1" >/dev/null 2>&1 || `

// guard is a process that outlives ours if that dies without unmounting, by a
// panic or by SIGKILL, and cleans up after it.
type guard struct {
	cmd  *exec.Cmd
	pipe io.Closer
}

// startGuard starts a guard for dir. Without one the next mount cleans up, so
// that failing is only logged.
func startGuard(dir string, asRoot bool, log *slog.Logger) *guard {
	clean := `fusermount3 -uz "$1" || fusermount -uz "$1"`
	if asRoot {
		clean = `umount -l "$1"`
	}
	cmd := exec.Command("/bin/sh", "-c", guardScript+clean, "koinon-mount-guard", dir)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // signals to our group are not for it
	pipe, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		log.Debug("no guard for the mount", "err", err)
		return nil
	}
	return &guard{cmd: cmd, pipe: pipe}
}

// stop ends the guard: the mount is gone. A guard that is nil is fine.
func (g *guard) stop() {
	if g == nil {
		return
	}
	// It finds nothing dead and ends by itself.
	_ = g.pipe.Close()
	_ = g.cmd.Wait()
}
