package client

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/koinon/koinon/internal/auth"
)

// A pass is found again by the credentials that it was given to and the address, and by nothing else; it is a file that
// nobody else may read.
func TestPasses(t *testing.T) {
	cache, dir := t.TempDir(), t.TempDir()
	t.Setenv("XDG_CACHE_HOME", cache)
	ca, err := auth.NewCA("lab")
	if err != nil {
		t.Fatal(err)
	}
	of := func(name string) *passes {
		creds, err := ca.IssueClient(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := creds.Save(filepath.Join(dir, name), name); err != nil {
			t.Fatal(err)
		}
		at := func(file string) string { return filepath.Join(dir, name, file) }
		files, err := auth.ReadFiles(at(auth.CACertFile), at(name+".crt"), at(name+".key"))
		if err != nil {
			t.Fatal(err)
		}
		p, err := newPasses("lab", files)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	ann, bob := of("ann"), of("bob")
	gone := filepath.Join(cache, "koinon", "passes", "gone")
	if ann.any([]string{"a:1"}) || ann.Pass("a:1") != nil {
		t.Error("there is a pass before one was kept")
	}
	ann.Keep("a:1", []byte("one"))
	if err := os.WriteFile(gone, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if day := time.Now().Add(-25 * time.Hour); os.Chtimes(gone, day, day) != nil {
		t.Fatal("cannot make a file old")
	}
	ann.Keep("a:1", []byte("two"))
	if _, err := os.Stat(gone); err == nil {
		t.Error("a file of another day is still there")
	}
	if got := ann.Pass("a:1"); !bytes.Equal(got, []byte("two")) || ann.any([]string{"b:1", "a:1"}) {
		t.Errorf("the pass is %q, and of use", got)
	}
	if ann.Pass("b:1") != nil || bob.Pass("a:1") != nil {
		t.Error("a pass is found by another address, or by another's credentials")
	}
	if err := os.Chmod(ann.path("a:1"), 0o640); err != nil {
		t.Fatal(err)
	}
	if got := ann.Pass("a:1"); got != nil {
		t.Errorf("a pass that others may read is used: %q", got)
	}
	// What is no file is not opened: that would wait for somebody to write into it.
	if err := errors.Join(os.Remove(ann.path("a:1")), syscall.Mkfifo(ann.path("a:1"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if got := ann.Pass("a:1"); got != nil {
		t.Errorf("a pipe holds the pass %q", got)
	}
	if elsewhere := (&passes{ann.dir, "shop", ann.credentials}); elsewhere.path("a:1") == ann.path("a:1") {
		t.Error("a pass is found by the name of another cluster")
	}
	ann.Keep("a:1", nil)
	if _, err := os.Stat(ann.path("a:1")); !os.IsNotExist(err) {
		t.Errorf("a pass of no use is still there: %v", err)
	}
}

// Where the cache is must not depend on where a command is started.
func TestCacheDir(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", "")
	t.Setenv("HOME", "here")
	if dir, err := cacheDir(); err == nil {
		t.Errorf("with a relative home directory passes are kept in %s", dir)
	}
}
