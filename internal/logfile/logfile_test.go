//go:build linux

package logfile

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func open(t *testing.T, path string, max int64) *File {
	t.Helper()
	f, err := Open(path, max)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

func write(t *testing.T, f *File, text string) {
	t.Helper()
	if n, err := f.Write([]byte(text)); err != nil || n != len(text) {
		t.Fatalf("write: %d, %v", n, err)
	}
}

// The log never takes more than twice its bound, and lines stay whole.
func TestRotates(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	f := open(t, path, 10)
	for _, line := range []string{"one\n", "two\n", "three\n", "four\n", "a line longer than the bound\n", "last\n"} {
		write(t, f, line)
	}
	if got, want := read(t, path), "last\n"; got != want {
		t.Errorf("the log is %q, want %q", got, want)
	}
	if got, want := read(t, path+".1"), "a line longer than the bound\n"; got != want {
		t.Errorf("the one before is %q, want %q", got, want)
	}
}

// A restart goes on with what is there, and counts it.
func TestAppends(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	write(t, open(t, path, 10), "before\n")
	f := open(t, path, 10)
	write(t, f, "x\n")
	if got, want := read(t, path), "before\nx\n"; got != want {
		t.Errorf("the log is %q, want %q", got, want)
	}
	write(t, f, "yz\n")
	if got, want := read(t, path+".1"), "before\nx\n"; got != want {
		t.Errorf("the one before is %q, want %q", got, want)
	}
}

// When the file cannot be rotated the log goes on.
func TestGoesOnWithoutRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if err := os.MkdirAll(filepath.Join(path+".1", "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	f := open(t, path, 4)
	write(t, f, "one\n")
	write(t, f, "two\n")
	if got, want := read(t, path), "one\ntwo\n"; got != want {
		t.Errorf("the log is %q, want %q", got, want)
	}
}

func TestClosed(t *testing.T) {
	f := open(t, filepath.Join(t.TempDir(), "log"), 10)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte("x")); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("got %v", err)
	}
}

// A panic is found in the log that is current, after a rotation too.
func TestStandardErrorFollows(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	if os.Getenv("KOINON_LOGFILE_TEST") != "" {
		f, err := Open(os.Getenv("KOINON_LOGFILE_TEST"), 10)
		if err != nil {
			t.Fatal(err)
		}
		write(t, f, "first file\n")
		write(t, f, "second\n")
		panic("a bug")
	}
	cmd := exec.Command(os.Args[0], "-test.run=TestStandardErrorFollows$")
	cmd.Env = append(os.Environ(), "KOINON_LOGFILE_TEST="+path)
	log, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = log
	if err := cmd.Run(); err == nil {
		t.Fatal("the child did not panic")
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}
	if got := read(t, path); !strings.HasPrefix(got, "second\n") || !strings.Contains(got, "a bug") {
		t.Errorf("the log is %q", got)
	}
}
