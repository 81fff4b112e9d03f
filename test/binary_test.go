//go:build linux

package test

import (
	"debug/elf"
	"testing"
)

// TestNoMethodsByName: where anything in the binary looks up methods by name, as a template does, the linker keeps every method of
// every type: the binary is a third larger, and each command starts half a millisecond later.
func TestNoMethodsByName(t *testing.T) {
	f, err := elf.Open(koinonBinary(t))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	symbols, err := f.Symbols()
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, s := range symbols {
		known[s.Name] = true
	}
	if !known["reflect.Value.Field"] {
		t.Fatal("the binary has no symbols that every program like it has: this test finds nothing")
	}
	if name := "text/template.(*Template).Execute"; known[name] {
		t.Errorf("%s is linked: go build -ldflags=-dumpdep tells through whom", name)
	}
}
