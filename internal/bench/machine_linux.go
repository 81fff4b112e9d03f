package bench

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// machine gathers what the kernel says about this machine. A fact that cannot
// be had stays empty.
func machine() Machine {
	m := Machine{OS: runtime.GOOS, Arch: runtime.GOARCH, Cores: runtime.NumCPU(), Go: runtime.Version()}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Sysname[:]) + " " + unix.ByteSliceToString(u.Release[:])
	}
	if kib, err := strconv.ParseInt(strings.TrimSuffix(procField("/proc/meminfo", "MemTotal"), " kB"), 10, 64); err == nil {
		m.MemoryBytes = kib << 10
	}
	m.CPU, m.Load = procField("/proc/cpuinfo", "model name"), -1
	if text, err := os.ReadFile("/proc/loadavg"); err == nil {
		first, _, _ := strings.Cut(string(text), " ")
		if load, err := strconv.ParseFloat(first, 64); err == nil {
			m.Load = load
		}
	}
	return m
}

// procField returns the value of the first "key : value" line of a /proc file.
func procField(file, key string) string {
	f, err := os.Open(file)
	if err != nil {
		return ""
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if k, v, ok := strings.Cut(s.Text(), ":"); ok && strings.TrimSpace(k) == key {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// target describes the file system that holds dir.
func target(name, dir string) (Target, error) {
	t := Target{Name: name, Dir: dir}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return t, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	t.TotalBytes = int64(st.Blocks) * st.Bsize
	t.FreeBytes = int64(st.Bavail) * st.Bsize
	t.FSMagic = fmt.Sprintf("%#x", uint32(st.Type))
	t.FSType = t.FSMagic
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return t, nil // the magic number has to do
	}
	mountOf(&t, string(table), dir)
	return t, nil
}

// mountOf fills in the type and source of the mount that dir lies in, from a
// table in the format of proc_pid_mountinfo(5). A later mount covers an
// earlier one at the same place.
func mountOf(t *Target, table, dir string) {
	best := -1
	for line := range strings.Lines(table) {
		left, right, ok := strings.Cut(line, " - ")
		fields, after := strings.Fields(left), strings.Fields(right)
		if !ok || len(fields) < 6 || len(after) < 2 {
			continue
		}
		point := unescapeMount(fields[4])
		if dir != point && point != "/" && !strings.HasPrefix(dir, point+"/") {
			continue
		}
		if len(point) >= best {
			best = len(point)
			t.FSType, t.Source, t.MountPoint, t.MountOptions = after[0], unescapeMount(after[1]), point, fields[5]
		}
	}
}

// unescapeMount undoes the octal escapes (\040 for a blank) of mountinfo.
func unescapeMount(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}
