//go:build !linux

package transfer

import (
	"io/fs"
	"time"

	"github.com/koinon/koinon"
)

// sysAttrs returns what fs.FileInfo leaves to the system, as far as it is
// portable.
func sysAttrs(info fs.FileInfo) (atime time.Time, uid, gid uint32) { return info.ModTime(), 0, 0 }

// setLinkAttrs has no portable system call.
func setLinkAttrs(string, koinon.Attrs) error { return nil }
