package atomicfile

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// TestWrite: a file is what was written last, with its mode, and nothing stays beside it.
func TestWrite(t *testing.T) {
	for name, write := range map[string]func(string, []byte, fs.FileMode) error{"Write": Write, "WriteDurably": WriteDurably, "CreateDurably": CreateDurably} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "f")
			if err := write(path, []byte("one"), 0o600); err != nil {
				t.Fatal(err)
			}
			want := "two"
			switch err := write(path, []byte("two"), 0o644); {
			case name != "CreateDurably" && err != nil:
				t.Fatal(err)
			case name == "CreateDurably":
				if want = "one"; !errors.Is(err, fs.ErrExist) {
					t.Errorf("%v expected, found %v", fs.ErrExist, err)
				}
			}
			expect(t, path, want, map[string]fs.FileMode{"one": 0o600, "two": 0o644}[want])
			if err := write(filepath.Join(path, "below"), nil, 0o600); err == nil {
				t.Error("a file below a file was written")
			}
			alone(t, filepath.Dir(path))
		})
	}
}

// TestNoPlace: what cannot be put in its place is taken away.
func TestNoPlace(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "f"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, write := range []func(string, []byte, fs.FileMode) error{Write, WriteDurably, CreateDurably} {
		if err := write(filepath.Join(dir, "f"), []byte("x"), 0o600); err == nil {
			t.Error("a directory was replaced by a file")
		}
	}
	alone(t, dir)
}

// TestReadersSeeWholes while others write.
func TestReadersSeeWholes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	a, b := bytes.Repeat([]byte("a"), 100_000), bytes.Repeat([]byte("b"), 50_000)
	if err := Write(path, a, 0o600); err != nil {
		t.Fatal(err)
	}
	var writers sync.WaitGroup
	for _, what := range [][]byte{a, b} {
		writers.Go(func() {
			for range 200 {
				if err := Write(path, what, 0o600); err != nil {
					t.Error(err)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { writers.Wait(); close(done) }()
	for reading := true; reading; {
		select {
		case <-done:
			reading = false
		default:
		}
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, a) && !bytes.Equal(got, b) {
			t.Fatalf("a whole file expected, found %d bytes, %v", len(got), err)
		}
	}
	alone(t, filepath.Dir(path))
}

func expect(t *testing.T, path, want string, mode fs.FileMode) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || string(got) != want {
		t.Errorf("%q expected, found %q, %v", want, got, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != mode {
		t.Errorf("mode %v expected, found %v, %v", mode, info, err)
	}
}

// alone says that a directory holds one entry.
func alone(t *testing.T, dir string) {
	t.Helper()
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("one entry expected, found %v, %v", entries, err)
	}
}
