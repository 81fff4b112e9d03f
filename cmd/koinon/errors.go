package main

import (
	"errors"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"github.com/spf13/pflag"

	"github.com/koinon/koinon/internal/sys"
)

// words writes an error for people: what it was about and what is wrong, in one
// line where the cause allows it. The names of operations, which are for
// developers, and kinds that the cause says better, are left out, also inside of
// errors with a text of their own.
func words(err error) string {
	e, ok := err.(*sys.Error)
	if !ok {
		text := err.Error()
		for _, inner := range wrapped(err) {
			if was := inner.Error(); was != "" {
				text = strings.Replace(text, was, words(inner), 1)
			}
		}
		return text
	}
	var parts []string
	add := func(s string) {
		if s != "" && !strings.HasPrefix(strings.Join(parts, ": "), s) {
			parts = append(parts, s)
		}
	}
	add(string(e.Subject))
	if e.Err == nil {
		add(e.Kind.String())
		return strings.Join(parts, ": ")
	}
	cause := words(e.Err)
	if e.Subject != "" && telling(e.Kind) && !strings.Contains(cause, e.Kind.String()) {
		add(e.Kind.String())
	}
	if strings.HasPrefix(cause, string(e.Subject)) { // it begins with what it was about
		return cause
	}
	add(cause)
	return strings.Join(parts, ": ")
}

// wrapped are the errors that one wraps directly.
func wrapped(err error) []error {
	switch w := err.(type) {
	case interface{ Unwrap() []error }:
		return w.Unwrap()
	case interface{ Unwrap() error }:
		if inner := w.Unwrap(); inner != nil {
			return []error{inner}
		}
	}
	return nil
}

// telling says that a kind adds something to a cause in words. What is not there, or
// is there already, may be no file, and its cause says what it is.
func telling(k sys.Kind) bool {
	switch k {
	case sys.Other, sys.NotExist, sys.Exist, sys.Invalid, sys.Unavailable, sys.Busy, sys.NotSupported, sys.Interrupted, sys.NotLeader:
		return false
	}
	return true
}

// toldError is an error with a text of its own.
type toldError struct {
	text string
	err  error
}

func (e *toldError) Error() string { return e.text }

func (e *toldError) Unwrap() error { return e.err }

// flagError words what is wrong with a flag.
func flagError(err error) error {
	if bad, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
		want := err
		if inner := errors.Unwrap(err); inner != nil {
			want = inner
		}
		text := want.Error()
		if bad.GetFlag().Value.Type() == "duration" {
			text = "give a number and its unit, such as 30s, 10m or 1h30m"
		} else if errors.Is(want, strconv.ErrSyntax) || errors.Is(want, strconv.ErrRange) || strings.Contains(text, "strconv.") {
			text = "give a number"
		}
		return &toldError{"--" + bad.GetFlag().Name + " is " + strconv.Quote(bad.GetValue()) + ": " + text, err}
	}
	return err
}

// hinted is a command of this program in a message: `koinon ...`.
var hinted = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile("`koinon (dev )?([a-z]+)([^`]*)`") })

// hint completes the commands that a message advises with the flags by which
// the user chose the cluster, so that they can be typed as they stand.
func (a *app) hint(msg string) string {
	return hinted().ReplaceAllStringFunc(msg, func(cmd string) string {
		m := hinted().FindStringSubmatch(cmd)
		flag := ""
		switch {
		case m[1] == "" && m[2] == "dev": // any command of it
		case strings.Contains(m[3], " --config ") || strings.Contains(m[3], " --dir ") || m[2] == "serve":
		case m[1] != "" && a.devDir != "":
			flag = " --dir " + quoted(a.devDir)
		case m[1] == "" && a.configPath != "":
			flag = " --config " + quoted(a.configPath)
		case m[1] == "" && a.devDir != "":
			flag = " --config " + quoted(filepath.Join(a.devDir, "client.toml"))
		}
		return strings.TrimSuffix(cmd, "`") + flag + "`"
	})
}

// quoted writes a word for a shell.
func quoted(word string) string {
	special := func(r rune) bool { // what a shell does not take as it stands
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("_@%+=:,./~-", r)
	}
	if word != "" && !strings.ContainsFunc(word, special) {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}
