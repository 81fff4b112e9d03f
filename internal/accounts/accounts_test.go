package accounts

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestLookup: from /etc/passwd, from a directory service, and of nobody.
func TestLookup(t *testing.T) {
	bin := t.TempDir()
	script := "#!/bin/sh\ncase $1.$2 in\npasswd.4242) echo ada:x:4242:77:Ada:/net/ada:/bin/zsh;;\ngroup.4243) echo crew:x:4243:ada,bob;;\n*) exit 2;;\nesac\n"
	if err := os.WriteFile(filepath.Join(bin, "getent"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	if u, err := LookupUser(0); err != nil || u.Name != "root" || u.Home == "" {
		t.Errorf("root: found %+v, %v", u, err)
	}
	if u, err := LookupUser(4242); err != nil || u != (User{"ada", "/net/ada"}) {
		t.Errorf("a user of the directory: found %+v, %v", u, err)
	}
	if g, err := LookupGroup(4243); err != nil || g != "crew" {
		t.Errorf("a group of the directory: found %q, %v", g, err)
	}
	if _, err := LookupUser(4244); !errors.Is(err, ErrUnknown) {
		t.Errorf("nobody: found %v", err)
	}
	if _, err := LookupGroup(4244); !errors.Is(err, ErrUnknown) {
		t.Errorf("no group: found %v", err)
	}
}
