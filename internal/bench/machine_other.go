//go:build !linux

package bench

import (
	"math"
	"os"
	"runtime"
)

// machine gathers what Go knows about this machine.
func machine() Machine {
	return Machine{OS: runtime.GOOS, Arch: runtime.GOARCH, Cores: runtime.NumCPU(), Go: runtime.Version(), Load: -1}
}

// target names the directory; the free space is not known here.
func target(name, dir string) (Target, error) {
	if _, err := os.Stat(dir); err != nil {
		return Target{}, err
	}
	return Target{Name: name, Dir: dir, FSType: "unknown", FreeBytes: math.MaxInt64}, nil
}
