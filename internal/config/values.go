package config

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Duration is a time.Duration that is written as "10m" or "1h30m".
type Duration time.Duration

// Std returns d as the standard library has it.
func (d Duration) Std() time.Duration { return time.Duration(d) }

// String writes d as time.Duration does, without zero parts: "10m", not
// "10m0s".
func (d Duration) String() string {
	s := time.Duration(d).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%q is not a duration; write it like \"90s\", \"10m\" or \"24h\"", text)
	}
	*d = Duration(v)
	return nil
}

// Size is a number of bytes that is written as "64MiB".
type Size int64

// Units of Size.
const (
	KiB Size = 1 << 10
	MiB Size = 1 << 20
	GiB Size = 1 << 30
	TiB Size = 1 << 40
)

// sizeUnits in the order in which String tries them.
var sizeUnits = [...]struct {
	name string
	size Size
}{{"TiB", TiB}, {"GiB", GiB}, {"MiB", MiB}, {"KiB", KiB}, {"B", 1}}

// String writes s in the largest unit that divides it.
func (s Size) String() string {
	for _, u := range sizeUnits {
		if s%u.size == 0 && (s != 0 || u.size == 1) {
			return strconv.FormatInt(int64(s/u.size), 10) + u.name
		}
	}
	panic(fmt.Sprintf("config: expected a unit that divides %d, found none", int64(s)))
}

// MarshalText implements encoding.TextMarshaler.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler. The number may have a
// fraction; bytes are cut to whole ones. The unit is one of B, KiB, MiB, GiB and
// TiB, for which k, K and so on stand too, as in other tools.
func (s *Size) UnmarshalText(text []byte) error {
	full := string(text)
	if n := len(full); n > 0 && strings.Contains("kmgtKMGT", full[n-1:]) {
		full = full[:n-1] + strings.ToUpper(full[n-1:]) + "iB"
	}
	for _, u := range sizeUnits {
		digits, ok := strings.CutSuffix(full, u.name)
		if !ok {
			continue
		}
		digits = strings.TrimSpace(digits)
		if strings.Trim(digits, "0123456789.") != "" { // what else ParseFloat takes
			break
		}
		if n, err := strconv.ParseInt(digits, 10, 64); err == nil && n <= int64((1<<63-1)/u.size) {
			*s = Size(n) * u.size
			return nil
		}
		n, err := strconv.ParseFloat(digits, 64)
		if err != nil || n*float64(u.size) >= 1<<63 {
			break
		}
		*s = Size(n * float64(u.size))
		return nil
	}
	return fmt.Errorf("%q is not a size; write it like \"512KiB\", \"64M\" or \"1.5GiB\"", text)
}
