package engine

import (
	"strings"
	"unsafe"
)

// HideArgs returns a copy of the process's arguments and blanks the passwords
// of URLs in the memory that the operating system shows as its command line,
// with what may be one in the values of the named flags, which are engines.
// args must be os.Args, before anything has kept a part of them.
func HideArgs(args []string, flags ...string) []string {
	out := make([]string, len(args))
	for i, arg := range args {
		out[i] = strings.Clone(arg)
		spans := secretSpans(arg)
		for _, name := range flags {
			value, ok := strings.CutPrefix(arg, "--"+name+"=")
			if !ok && (i == 0 || out[i-1] != "--"+name) {
				continue
			}
			for _, s := range Ref(value).spans() {
				before := len(arg) - len(value)
				spans = append(spans, span{before + s.from, before + s.to})
			}
		}
		blank(arg, spans)
	}
	return out
}

// blank overwrites spans of arg in place: a line of ps keeps its length.
func blank(arg string, spans []span) {
	memory := unsafe.Slice(unsafe.StringData(arg), len(arg))
	for _, s := range spans {
		for i := s.from; i < s.to; i++ {
			memory[i] = '*'
		}
	}
}
