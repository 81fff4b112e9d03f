//go:build !linux

package disk

import "github.com/cockroachdb/pebble/v2/vfs"

// directFile stands for what only Linux has.
type directFile struct{}

func openDirect(vfs.File) *directFile { return nil }

func (d *directFile) close() {}

func (d *directFile) writeRecord(*header, []byte) (bool, error) { return false, nil }

func (d *directFile) readAt(vfs.File, []byte, int64) (bool, error) { return false, nil }
