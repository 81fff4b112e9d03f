package sys_test

import (
	"math"
	"testing"
	"time"

	"github.com/koinon/koinon/internal/sys"
)

func TestTimeNs(t *testing.T) {
	for _, tc := range []struct {
		at   time.Time
		want int64
	}{
		{time.Unix(0, 0), 0},
		{time.Unix(1, 5), 1_000_000_005},
		{time.Unix(-1, 5), -999_999_995},
		{time.Date(2261, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2261, 1, 1, 0, 0, 0, 0, time.UTC).UnixNano()},
		{time.Date(2300, 1, 1, 0, 0, 0, 0, time.UTC), math.MaxInt64},
		{time.Date(1600, 1, 1, 0, 0, 0, 0, time.UTC), math.MinInt64},
	} {
		if got := sys.TimeNs(tc.at.Unix(), int64(tc.at.Nanosecond())); got != tc.want {
			t.Errorf("%v became %d, expected %d", tc.at, got, tc.want)
		}
	}
}
