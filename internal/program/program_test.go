//go:build linux

package program

import (
	"os"
	"testing"
)

func TestTake(t *testing.T) {
	if Take() {
		t.Error("asked for without a word")
	}
	t.Setenv(variable, "node")
	if !Take() {
		t.Error("not asked for")
	}
	if v, ok := os.LookupEnv(variable); ok {
		t.Errorf("what is started later sees %q", v)
	}
}
