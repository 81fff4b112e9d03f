package main

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
)

// teller is a slog.Handler that tells people on standard error what a command
// does in the background, in a line like those of its errors.
type teller struct {
	*app
	attrs []slog.Attr
}

var _ slog.Handler = (*teller)(nil)

// logger tells what a user at a terminal must know.
func (a *app) logger() *slog.Logger { return slog.New(&teller{app: a}) }

// Enabled leaves out what only developers want to know. --quiet leaves errors.
func (t *teller) Enabled(_ context.Context, level slog.Level) bool {
	return level >= slog.LevelError || level >= slog.LevelWarn && !t.quiet
}

// Handle writes one line.
func (t *teller) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	b.WriteString("koinon: " + r.Message)
	add := func(at slog.Attr) bool {
		value := at.Value.Resolve().Any()
		if err, ok := value.(error); ok {
			value = words(err)
		}
		fmt.Fprintf(&b, "; %s: %v", at.Key, value)
		return true
	}
	for _, at := range t.attrs {
		add(at)
	}
	r.Attrs(add)
	_, err := fmt.Fprintln(t.err, t.told(b.String()))
	return err
}

// WithAttrs implements slog.Handler.
func (t *teller) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &teller{t.app, append(t.attrs[:len(t.attrs):len(t.attrs)], attrs...)}
}

// WithGroup implements slog.Handler. People need no groups.
func (t *teller) WithGroup(string) slog.Handler { return t }
