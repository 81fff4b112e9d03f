package env

import (
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Boot reads CLOCK_BOOTTIME (clock_gettime(2)). A kernel without it cannot
// hold leases, so a failure panics. The call never blocks, so the scheduler
// need not know of it: it is made several times per request.
func (System) Boot() time.Duration {
	var ts unix.Timespec
	_, _, errno := unix.RawSyscall(unix.SYS_CLOCK_GETTIME, unix.CLOCK_BOOTTIME, uintptr(unsafe.Pointer(&ts)), 0)
	if errno != 0 {
		panic("env: CLOCK_BOOTTIME: " + errno.Error())
	}
	return time.Duration(ts.Nano())
}
