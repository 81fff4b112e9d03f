package main

import (
	"math"
	"strings"
	"testing"
	"time"
)

// TestRate: the beginning of a copy, in which little happens, says little of its rate later.
func TestRate(t *testing.T) {
	var r rate
	r.add(0, 100*time.Millisecond)
	if got := r.add(100<<20, time.Second); got < 90<<20 || got > 100<<20 {
		t.Errorf("about 95 MiB/s expected, found %.0f", got)
	}
	for range 200 {
		r.add(10<<20, 100*time.Millisecond)
	}
	for range 200 {
		r.add(1<<20, 100*time.Millisecond)
	}
	if got := r.add(1<<20, 100*time.Millisecond); got < 10<<20 || got > 13<<20 {
		t.Errorf("about 10 MiB/s expected, found %.0f", got)
	}
}

func TestFit(t *testing.T) {
	for n, want := range map[int]string{-1: "", 0: "", 1: "…", 3: "lö…", 4: "löng", 5: "löng"} {
		if got := fit("löng", n); got != want {
			t.Errorf("%d columns: found %q, expected %q", n, got, want)
		}
	}
}

func TestProgressText(t *testing.T) {
	const mib = 1 << 20
	for _, tc := range []struct {
		done, total int64
		rate        float64
		width       int
		want        string
	}{
		{5 * mib, -1, mib, 79, "copying  5.0 MiB  1.0 MiB/s"},
		{0, 0, 0, 79, "copying  0 B  0 B/s"},
		{25 * mib, 100 * mib, 5 * mib, 70, "copying  [==        ]  25%  25.0 MiB of 100.0 MiB  5.0 MiB/s, 15s left"},
		{25 * mib, 100 * mib, 0, 40, "copying   25%  25.0 MiB of 100.0 MiB  0 B/s"},
		{100*mib - 1, 100 * mib, mib, 66, "copying  [============== ]  99%  100.0 MiB of 100.0 MiB  1.0 MiB/s"},
		{120 * mib, 100 * mib, mib, 66, "copying  [===============] 100%  120.0 MiB of 100.0 MiB  1.0 MiB/s"}, // files that grow meanwhile
		{mib, 3 << 40, math.Inf(1), 60, ""},
		{mib, 3 << 40, -mib, 60, ""},
	} {
		got := progressText("copying", tc.done, tc.total, tc.rate, tc.width)
		if tc.want != "" && got != tc.want || len(got) > max(tc.width, 50) || strings.Contains(got, "-") {
			t.Errorf("%d of %d: found %q, expected %q", tc.done, tc.total, got, tc.want)
		}
	}
}
