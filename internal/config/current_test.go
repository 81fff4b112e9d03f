package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/koinon/koinon/internal/sys"
)

// home gives the test a user of its own.
func home(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("HOME", dir)
	t.Setenv("XDG_CONFIG_HOME", "")
	t.Setenv(EnvConfig, "")
	return dir
}

func TestClientPath(t *testing.T) {
	dir := home(t)
	_, err := ClientPath("")
	if !sys.Is(err, sys.NotExist) {
		t.Fatalf("without any cluster: %v", err)
	}
	for _, hint := range []string{"--config", EnvConfig, "koinon dev up"} {
		if !strings.Contains(err.Error(), hint) {
			t.Errorf("%q does not tell of %s", err, hint)
		}
	}
	file := write(t, clientTOML)
	if is, err := SetCurrentIfAbsent(file); err != nil || !is {
		t.Fatalf("set: %v, %v", is, err)
	}
	expect := func(flag, want string) {
		t.Helper()
		if got, err := ClientPath(flag); err != nil || got != want {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	}
	expect("", filepath.Join(dir, ".config", "koinon", "client.toml"))
	t.Setenv(EnvConfig, "/env.toml")
	expect("", "/env.toml")
	expect("/flag.toml", "/flag.toml")
}

func TestSetCurrentKeepsAnother(t *testing.T) {
	home(t)
	first, second := write(t, clientTOML), write(t, clientTOML)
	set := func(path string, want bool) {
		t.Helper()
		if is, err := SetCurrentIfAbsent(path); err != nil || is != want {
			t.Fatalf("set %s: %v, %v, want %v", path, is, err, want)
		}
	}
	set(first, true)
	set(first, true)
	set(second, false)
	if err := UnsetCurrent(second); err != nil {
		t.Fatal(err)
	}
	if is, err := IsCurrent(first); err != nil || !is {
		t.Fatalf("unsetting another unset ours: %v, %v", is, err)
	}
	// A link to nothing is in nobody's way.
	if err := os.Remove(first); err != nil {
		t.Fatal(err)
	}
	set(second, true)
	if err := UnsetCurrent(second); err != nil {
		t.Fatal(err)
	}
	if is, err := IsCurrent(second); err != nil || is {
		t.Fatalf("unset, but current: %v, %v", is, err)
	}
}

func TestSetCurrentKeepsAFile(t *testing.T) {
	dir := home(t)
	own := filepath.Join(dir, ".config", "koinon", "client.toml")
	if err := os.MkdirAll(filepath.Dir(own), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(own, []byte(clientTOML), 0o600); err != nil {
		t.Fatal(err)
	}
	if is, err := SetCurrentIfAbsent(write(t, clientTOML)); err != nil || is {
		t.Fatalf("the user's own file was passed over: %v, %v", is, err)
	}
}

func TestNoHome(t *testing.T) {
	home(t)
	t.Setenv("HOME", "")
	if _, err := ClientPath(""); err == nil || !strings.Contains(err.Error(), "--config") {
		t.Errorf("got %v", err)
	}
}
