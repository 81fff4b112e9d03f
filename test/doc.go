//go:build linux

// Package test holds the tests of the whole system: real processes of the
// built binary, real mounts, real kills. They run by `make system`; the crash
// loop runs at length by `make crash`.
package test
