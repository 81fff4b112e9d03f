package main

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/spf13/cobra"
)

// versionReport is what -o json prints.
type versionReport struct {
	Version string `json:"version"`
	Go      string `json:"go"`
	OS      string `json:"os"`
	Arch    string `json:"arch"`
}

func newVersionCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print what was built",
		Long:  "Print what was built, as --version does: the version, and the version of Go.",
		Example: `  koinon version
  koinon version -o json`,
		Args: arguments(0, 0),
		RunE: func(*cobra.Command, []string) error {
			r := versionReport{OS: runtime.GOOS, Arch: runtime.GOARCH}
			r.Version, r.Go, _ = strings.Cut(version(), " ")
			return a.print(r, func(w io.Writer) { fmt.Fprintln(w, "koinon version", version()) })
		},
	}
}

// stamped is what `git describe` said when this was built. The linker sets it
// (see the Makefile), nothing else does.
var stamped string

// version tells what was built, in one word and the version of Go.
func version() string {
	if stamped != "" {
		return stamped + " " + runtime.Version() // what the toolchain has recorded takes a while to read
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		info = &debug.BuildInfo{GoVersion: "(unknown toolchain)"}
	}
	return versionOf(info)
}

// versionOf is the module's version and revision as the toolchain recorded them,
// as for what `go install` builds.
func versionOf(info *debug.BuildInfo) string {
	v := info.Main.Version
	if v == "" || v == "(devel)" {
		v = "devel"
	}
	for _, s := range info.Settings {
		if revision := s.Value[:min(12, len(s.Value))]; s.Key == "vcs.revision" && !strings.Contains(v, revision) {
			v += "-" + revision
		}
	}
	return v + " " + info.GoVersion
}
