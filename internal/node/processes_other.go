//go:build !linux

package node

import "context"

// processes run on Linux.
type processes struct{}

func (s *server) openProcesses(context.Context) *processes { return nil }

func (*processes) run(context.Context) {}

func (*processes) close() error { return nil }

func (*processes) trouble() string { return "" }
