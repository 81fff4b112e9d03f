package env_test

import (
	"testing"

	"github.com/koinon/koinon/internal/env"
)

func TestBootNeverGoesBack(t *testing.T) {
	last := env.System{}.Boot()
	if last <= 0 {
		t.Fatalf("the time since boot is %v", last)
	}
	for range 10_000 {
		now := env.System{}.Boot()
		if now < last {
			t.Fatalf("%v came after %v", now, last)
		}
		last = now
	}
}

func BenchmarkBoot(b *testing.B) {
	for b.Loop() {
		env.System{}.Boot()
	}
}
