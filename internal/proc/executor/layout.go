package executor

import (
	"fmt"
	"path/filepath"
)

// The directory of a supervisor (docs/formats/supervisor.md).
const (
	socketName  = "socket"
	lockName    = "lock"
	pidName     = "pid"
	logName     = "log"
	recordsName = "records"
	spoolDir    = "spool"
)

// logLines is how much of its log is shown when a supervisor does not start.
const logLines = 20

// spoolName is the name of a spool without its suffix: job, rank and epoch.
const spoolName = "%d.%d.%d."

// ackSuffix is that of the file that tells what was acknowledged of both outputs of a process.
const ackSuffix = "ack"

func (s Stream) suffix() string {
	if s == Stderr {
		return "err"
	}
	return "out"
}

func spoolPath(dir string, id ID, suffix string) string {
	return filepath.Join(dir, spoolDir, fmt.Sprintf(spoolName, id.Job, id.Rank, id.Epoch)+suffix)
}
