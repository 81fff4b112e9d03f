//go:build linux && !client

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/koinon/koinon/internal/config"
)

// TestDevImplied: without --dir the dev commands mean the cluster that the
// other commands speak to, where that is a dev cluster.
func TestDevImplied(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("XDG_CONFIG_HOME", "")
	t.Setenv("XDG_STATE_HOME", "")
	t.Setenv(config.EnvConfig, "")
	usual := filepath.Join(home, ".local/state/koinon/dev")
	make := func(name string, files ...string) string {
		dir := filepath.Join(home, name)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if err := os.WriteFile(filepath.Join(dir, f), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	current, other, real := make("current", "dev.toml", "client.toml"), make("other", "dev.toml", "client.toml"), make("real", "client.toml")
	client := func(dir string) string { return filepath.Join(dir, "client.toml") }
	expect := func(what, flag, env, want string) *devCommand {
		t.Helper()
		t.Setenv(config.EnvConfig, env)
		d := &devCommand{&app{configPath: flag}}
		if got, err := d.implied(); got != want || err != nil {
			t.Errorf("%s: got %q, %v, want %q", what, got, err, want)
		}
		return d
	}
	expect("no cluster is chosen", "", "", usual)
	if ok, err := config.SetCurrentIfAbsent(client(current)); !ok || err != nil {
		t.Fatal(ok, err)
	}
	expect("the current one is a dev cluster", "", "", current)
	expect("KOINON_CONFIG names another", "", client(other), other)
	expect("KOINON_CONFIG names one that is no dev cluster", "", client(real), usual)
	expect("KOINON_CONFIG names one that is gone", "", client(filepath.Join(home, "gone")), usual)
	d := expect("--config names another", client(other), client(real), other)
	if got := d.hint("`koinon dev start 2`"); got != "`koinon dev start 2 --dir "+other+"`" {
		t.Errorf("it advises %s", got)
	}
	t.Setenv(config.EnvConfig, "")
	if _, err := (&devCommand{&app{configPath: client(real)}}).implied(); err == nil || !strings.Contains(err.Error(), "--dir DIR") {
		t.Errorf("--config names one that is no dev cluster: %v", err)
	}
	if err := os.RemoveAll(current); err != nil {
		t.Fatal(err)
	}
	expect("the current one was deleted by hand", "", "", usual)
}
