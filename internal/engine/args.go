package engine

import (
	"strings"
	"unsafe"
)

// HideArgs returns a copy of the process's arguments and blanks the passwords
// of URLs in the memory that the operating system shows as its command line.
// args must be os.Args, before anything has kept a part of them.
func HideArgs(args []string) []string {
	out := make([]string, len(args))
	for i, arg := range args {
		out[i] = strings.Clone(arg)
		if Redact(arg) != arg {
			blank(arg)
		}
	}
	return out
}

// blank overwrites what Redact would take away, in place: a line of ps keeps
// its length.
func blank(arg string) {
	memory := unsafe.Slice(unsafe.StringData(arg), len(arg))
	for _, span := range secretSpans(arg) {
		for i := span[0]; i < span[1]; i++ {
			memory[i] = '*'
		}
	}
}

// secretSpans returns where the passwords of arg are.
func secretSpans(arg string) [][2]int {
	if !strings.Contains(arg, "://") && !strings.ContainsAny(arg, "?&") {
		return nil // nearly all: the expressions take a while to make
	}
	var spans [][2]int
	for _, m := range userinfo().FindAllStringSubmatchIndex(arg, -1) {
		spans = append(spans, [2]int{m[3] + 1, m[1] - 1})
	}
	for _, m := range passwordParam().FindAllStringSubmatchIndex(arg, -1) {
		spans = append(spans, [2]int{m[3], m[1]})
	}
	return spans
}
