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

	"github.com/koinon/koinon/internal/atomicfile"
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
	return atomicfile.Write(file, both, 0o755) // beside the one that may run
}

func read(path string) (image, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return image{}, err
	}
	return parse(path, raw)
}
