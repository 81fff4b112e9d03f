package bench

import "testing"

func TestMountOf(t *testing.T) {
	const table = `22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:40 / /mnt/k rw,nosuid - fuse.koinon koinon rw,user_id=0
31 22 0:41 / /mnt/with\040blank rw - tmpfs tmp rw
`
	for dir, want := range map[string]string{"/": "ext4", "/home/x": "ext4", "/mnt/k": "fuse.koinon", "/mnt/k/a/b": "fuse.koinon", "/mnt/kk": "ext4", "/mnt/with blank/d": "tmpfs"} {
		var got Target
		mountOf(&got, table, dir)
		if got.FSType != want {
			t.Errorf("%s: expected %s, found %s", dir, want, got.FSType)
		}
	}
}
