package config

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/koinon/koinon/internal/sys"
)

// EnvConfig is the environment variable that names the client's file.
const EnvConfig = "KOINON_CONFIG"

// ClientPath returns the file that tells which cluster to speak to: flag when
// it is not empty, else $KOINON_CONFIG, else the user's current one. The file
// of the first two is not looked for; that of the third exists.
func ClientPath(flag string) (string, error) {
	if flag != "" {
		return flag, nil
	}
	if path := os.Getenv(EnvConfig); path != "" {
		return path, nil
	}
	path, err := Current()
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(path); err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			return "", sys.E(opRead, sys.Subject(path), fileKind(err), plain(err))
		}
		return "", sys.E(sys.NotExist, "no cluster is chosen: give --config FILE, set "+EnvConfig+
			", or start a cluster on this machine with `koinon dev up` ("+path+" does not exist)")
	}
	return path, nil
}

// Current returns the path of the user's current client configuration,
// $XDG_CONFIG_HOME/koinon/client.toml or ~/.config/koinon/client.toml,
// whether it exists or not.
func Current() (string, error) {
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", sys.E(opRead, "the user's configuration directory is not known: give --config FILE, or set "+
			EnvConfig+", HOME or XDG_CONFIG_HOME", sys.Invalid)
	}
	return filepath.Join(dir, "koinon", "client.toml"), nil
}

// SetCurrentIfAbsent makes path the user's current client configuration when
// there is none, by a symbolic link, so that later changes of the file count.
// A link to a file that is gone counts as none. It reports whether path is
// the current one now.
func SetCurrentIfAbsent(path string) (bool, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return false, sys.E(opWrite, sys.Subject(path), err)
	}
	current, err := Current()
	if err != nil {
		return false, err
	}
	fail := func(err error) (bool, error) {
		return false, sys.E(opWrite, sys.Subject(current), fileKind(err), plain(err))
	}
	if is, err := IsCurrent(path); is || err != nil {
		return is, err
	}
	if _, err := os.Stat(current); err == nil {
		return false, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fail(err)
	}
	if err := os.MkdirAll(filepath.Dir(current), 0o700); err != nil {
		return fail(err)
	}
	if err := os.Remove(current); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fail(err)
	}
	if err := os.Symlink(path, current); err != nil {
		if errors.Is(err, fs.ErrExist) { // somebody else was first
			return false, nil
		}
		return fail(err)
	}
	return true, nil
}

// UnsetCurrent removes the link that SetCurrentIfAbsent made to path. It does
// nothing when the current configuration is another one.
func UnsetCurrent(path string) error {
	if is, err := IsCurrent(path); !is || err != nil {
		return err
	}
	current, err := Current()
	if err != nil {
		return err
	}
	if err := os.Remove(current); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return sys.E(opWrite, sys.Subject(current), fileKind(err), plain(err))
	}
	return nil
}

// IsCurrent reports whether the user's current configuration is a link to
// path.
func IsCurrent(path string) (bool, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return false, sys.E(opRead, sys.Subject(path), err)
	}
	current, err := Current()
	if err != nil {
		return false, err
	}
	// An error means that there is no link, which is answer enough.
	target, err := os.Readlink(current)
	return err == nil && target == path, nil
}
