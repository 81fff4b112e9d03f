//go:build linux

package main

import (
	"debug/elf"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/koinon/koinon/internal/program"
	"golang.org/x/sys/unix"
)

// build makes a program that prints its name, its arguments, its environment and the timer slack of its threads.
func build(t *testing.T, name string, args ...string) string {
	t.Helper()
	dir := t.TempDir()
	source, path := filepath.Join(dir, "main.go"), filepath.Join(dir, name)
	text := `package main
import ("errors"; "fmt"; "io/fs"; "os"; "path/filepath"; "slices")
func main() {
	fmt.Printf("` + name + ` %q %q %d", os.Args[1:], os.Environ(), slices.Max(make([]int, 1<<20)))
	threads, _ := filepath.Glob("/proc/self/task/*")
	read := 0
	for _, t := range threads {
		slack, err := os.ReadFile("/proc/" + filepath.Base(t) + "/timerslack_ns")
		if errors.Is(err, fs.ErrPermission) {
			continue // of others it is told to the privileged alone
		}
		fmt.Printf(" %v%s", err, slack)
		read++
	}
	fmt.Printf(" %d", read)
}`
	if err := os.WriteFile(source, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", append(append([]string{"build", "-o", path}, args...), source)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return path
}

func TestJoin(t *testing.T) {
	client, node, both := build(t, "client", "-ldflags=-s -w"), build(t, "node", "-ldflags=-T 0x40001000"), filepath.Join(t.TempDir(), "both")
	if err := joinFiles(client, node, both); err != nil {
		t.Fatal(err)
	}
	long := "LONG=" + strings.Repeat("x", 1000)
	for _, c := range []struct {
		env  []string
		want string
	}{
		{[]string{}, "client"},
		{[]string{"A="}, "client"},
		{[]string{"A=1", program.Node}, "client"},
		{[]string{program.Node[:8]}, "client"},
		{[]string{program.Node[:15] + "client"}, "client"},
		{[]string{program.Node}, "node"},
		{[]string{program.Node, "A=1", long}, "node"},
	} {
		for _, args := range [][]string{{}, {"serve"}, {"a", "", long}} {
			cmd := exec.Command(both, args...)
			cmd.Env = c.env
			out, err := cmd.CombinedOutput()
			slacks, said := strings.CutPrefix(string(out), fmt.Sprintf("%s %q %q 0", c.want, args, c.env))
			fields := strings.Fields(slacks)
			read := len(fields) - 1
			if err != nil || !said || read < 0 || fields[read] != fmt.Sprint(read) || strings.Count(slacks, fmt.Sprintf(" <nil>%d\n", program.TimerSlack)) != read ||
				os.Geteuid() == 0 && read < 2 {
				t.Errorf("%.60q with %.60q: %v, %.300s", args, c.env, err, out)
			}
		}
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 70_000, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(both).CombinedOutput()
	if !strings.Contains(string(out), "<nil>70000\n") || strings.Contains(string(out), fmt.Sprint(program.TimerSlack)) || err != nil {
		t.Errorf("the slack that somebody has chosen: %v, %s", err, out)
	}
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, program.DefaultSlack, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	f, err := elf.Open(both)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	symbols, err := f.Symbols()
	if err != nil || len(symbols) == 0 {
		t.Errorf("tools do not find the node's symbols: %v", err)
	}
	if info, err := f.Section(".go.buildinfo").Data(); err != nil || len(info) == 0 {
		t.Errorf("tools do not find how it was built: %v", err)
	}
}

func TestJoinRefuses(t *testing.T) {
	client, node := build(t, "client"), build(t, "node", "-ldflags=-T 0x40001000")
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	raw, err := os.ReadFile(node)
	if err != nil {
		t.Fatal(err)
	}
	other := []byte(string(raw))
	le.PutUint16(other[0x12:], uint16(elf.EM_RISCV))
	shared := []byte(string(raw))
	le.PutUint16(shared[0x10:], uint16(elf.ET_DYN))
	out := file("out", "what was there")
	for _, c := range []struct{ client, node, want string }{
		{client, client, "link that with -T"},
		{node, client, "link that with -T"},
		{client, file("text", "text"), "text"},
		{client, file("short", string(raw[:2000])), "short"},
		{client, file("empty", ""), "empty"},
		{client, file("other", string(other)), "is for EM_X86_64, the node's for EM_RISCV"},
		{client, file("shared", string(shared)), "expected a static program"},
		{client, filepath.Join(dir, "missing"), "no such file"},
	} {
		if err := joinFiles(c.client, c.node, out); err == nil || (!strings.Contains(err.Error(), c.want) && !(runtime.GOARCH != "amd64" && strings.Contains(c.want, "X86"))) {
			t.Errorf("%s and %s: expected %q, found %v", filepath.Base(c.client), filepath.Base(c.node), c.want, err)
		}
	}
	if was, err := os.ReadFile(out); err != nil || string(was) != "what was there" {
		t.Errorf("the file there was: %q, %v", was, err)
	}
	if names, err := filepath.Glob(out + ".*"); err != nil || len(names) > 0 {
		t.Errorf("left behind: %q, %v", names, err)
	}
}

// TestChoice: the code is what the GNU assembler makes of the comments, also for the machine that this does not run on.
func TestChoice(t *testing.T) {
	for _, c := range []struct {
		machine elf.Machine
		want    string
	}{
		{elf.EM_X86_64, "b89d000000bf1e0000000f053d50c300007511b89d000000bf1d000000be21a107000f05488b0424488b44c4104885c0742b48b94b4f494e4f4e5f50" +
			"483908751c48b9524f4752414d3d6e48394808750c48b900ffeeddccbbaa99ffe148b98877665544332211ffe1"},
		{elf.EM_AARCH64, "e81480d2c00380d2010000d4036a98521f0003eba1000054a00380d2212494d2e100a0f2010000d4e00340f9e06f208b000840f9600100b4010040f9" +
			"630100583f0003ebe1000054010440f9230100583f0003eb610000540301005860001fd60301005860001fd64b4f494e4f4e5f50524f4752414d3d6e" +
			"00ffeeddccbbaa998877665544332211"},
	} {
		code, err := choose(c.machine, 0x1122334455667788, 0x99aabbccddeeff00)
		if got := hex.EncodeToString(code); err != nil || got != c.want {
			t.Errorf("%v: %s, %v", c.machine, got, err)
		}
	}
	if _, err := choose(elf.EM_RISCV, 1, 2); err == nil {
		t.Error("a machine that it has no code for is taken")
	}
}
