// Package simtest chooses what tests simulate.
package simtest

import (
	"os"
	"strconv"
	"testing"
)

// Seeds returns which seeds to run: KOINON_SEED names one, KOINON_SEEDS how many.
func Seeds(t *testing.T, count int) (first, end uint64) {
	t.Helper()
	if s := os.Getenv("KOINON_SEED"); s != "" {
		seed, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("KOINON_SEED: %v", err)
		}
		return seed, seed + 1
	}
	if s := os.Getenv("KOINON_SEEDS"); s != "" {
		var err error
		if count, err = strconv.Atoi(s); err != nil {
			t.Fatalf("KOINON_SEEDS: %v", err)
		}
	}
	return 1, uint64(count) + 1
}
