// Package atomicfile writes files that are there as a whole or not at all, also
// for who reads them at the same moment, and when the program that writes is
// killed. What it cannot finish it takes away again; a killed program leaves a
// file whose name begins with a dot beside the one that it was to become.
//
// Its functions return the errors of package os, and may be called concurrently:
// the last one wins.
package atomicfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
)

// Write makes or replaces a file. A crash of the machine may bring back the
// one before it, or leave it empty: it is for what can be found out again.
func Write(name string, data []byte, mode fs.FileMode) error {
	tmp, err := beside(name, data, mode, false)
	if err != nil {
		return err
	}
	return put(os.Rename(tmp, name), tmp)
}

// WriteDurably is Write, and the file survives a crash of the machine.
func WriteDurably(name string, data []byte, mode fs.FileMode) error {
	tmp, err := beside(name, data, mode, true)
	if err != nil {
		return err
	}
	if err := put(os.Rename(tmp, name), tmp); err != nil {
		return err
	}
	return syncDir(filepath.Dir(name))
}

// CreateDurably makes a file that must not exist (fs.ErrExist), and that
// survives a crash of the machine.
func CreateDurably(name string, data []byte, mode fs.FileMode) error {
	tmp, err := beside(name, data, mode, true)
	if err != nil {
		return err
	}
	err = os.Link(tmp, name) // which, unlike rename(2), refuses to replace
	if err = errors.Join(err, os.Remove(tmp)); err != nil {
		return err
	}
	return syncDir(filepath.Dir(name))
}

// put takes away a temporary file that has not found its place.
func put(err error, tmp string) error {
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return nil
}

// beside writes a temporary file, and returns its name. It has its mode before
// the first byte, so that a key is never readable by others.
func beside(name string, data []byte, mode fs.FileMode, sync bool) (string, error) {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return "", err
	}
	err = f.Chmod(mode)
	if err == nil {
		_, err = f.Write(data)
	}
	if err == nil && sync {
		err = f.Sync()
	}
	return f.Name(), put(errors.Join(err, f.Close()), f.Name())
}

func syncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil // directories cannot be synced there
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
