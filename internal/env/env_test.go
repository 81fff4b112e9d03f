package env_test

import (
	"testing"
	"testing/synctest"
	"time"

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

type sinceClock struct{ began time.Time }

func (c sinceClock) Boot() time.Duration { return time.Since(c.began) + 123*time.Millisecond }
func (c sinceClock) Wall() time.Time     { return time.Now() }

// Tickers of one period tick at the same moments, whenever they were made.
func TestNewTicker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		clock := sinceClock{time.Now()}
		for range 5 {
			const d = 50 * time.Millisecond
			tick := env.NewTicker(clock, d)
			for range 4 {
				<-tick.C
				if at := clock.Boot(); at%d != 0 {
					t.Errorf("a tick at %v", at)
				}
			}
			tick.Stop()
			time.Sleep(7 * time.Millisecond) // so that the next one begins elsewhere
		}
	})
}
