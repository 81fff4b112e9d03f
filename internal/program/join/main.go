// Command join makes one file of two programs, see package program:
//
//	join CLIENT NODE FILE
//
// Both are static programs for the same machine, on Linux, and NODE is linked at
// addresses that CLIENT does not use. FILE is there as a whole or not at all.
package main

import (
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: join CLIENT NODE FILE")
		os.Exit(2)
	}
	if err := joinFiles(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, "join:", err)
		os.Exit(1)
	}
}

func joinFiles(client, node, file string) error {
	c, err := read(client)
	if err != nil {
		return err
	}
	n, err := read(node)
	if err != nil {
		return err
	}
	both, err := join(c, n)
	if err != nil {
		return err
	}
	return replace(file, both)
}

func read(path string) (image, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return image{}, err
	}
	return parse(path, raw)
}

// replace writes a program beside the one that may run, and puts it in its place.
func replace(path string, program []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name()) // the error before says what is wrong
		}
	}()
	_, err = f.Write(program)
	if err == nil {
		err = f.Chmod(0o755)
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
