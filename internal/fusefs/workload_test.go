//go:build linux

package fusefs_test

import "testing"

// workloads are what people do to files, one script each. A script fails by its
// exit code.
var workloads = []struct{ name, script string }{
	{"small file", `echo hello >a; [ "$(cat a)" = hello ]; [ "$(stat -c %s a)" = 6 ]`},
	{"append", `for i in 1 2 3; do echo $i >>log; done; [ "$(cat log)" = "$(printf '1\n2\n3')" ]`},
	{"large file", `head -c 70000000 /dev/urandom >/tmp/$$.ref; cp /tmp/$$.ref big; cmp big /tmp/$$.ref
			dd if=big of=copy bs=37k status=none; cmp copy /tmp/$$.ref; rm /tmp/$$.ref`},
	{"overwrite in place", `head -c 9000000 /dev/urandom >f; cp f /tmp/$$.ref
			for at in 0 65536 4194300 8999990; do
				echo XYZ | dd of=f bs=1 seek=$at conv=notrunc status=none
				echo XYZ | dd of=/tmp/$$.ref bs=1 seek=$at conv=notrunc status=none
			done; cmp f /tmp/$$.ref; rm /tmp/$$.ref`},
	{"truncate", `echo 0123456789 >f; truncate -s 5 f; [ "$(cat f)" = 01234 ]; truncate -s 8 f
			[ "$(od -An -c f | tr -d ' \n')" = '01234\0\0\0' ]; : >f; [ ! -s f ]`},
	{"sparse", `truncate -s 1G s; echo end | dd of=s bs=1 seek=1073741820 conv=notrunc status=none
			[ "$(tail -c 4 s)" = end ]; [ "$(head -c 100M s | tr -d '\0' | wc -c)" = 0 ]`},
	{"fallocate", `echo 0123456789 >f; fallocate -l 100 f; [ "$(stat -c %s f)" = 100 ]
			fallocate -p -o 2 -l 3 f; [ "$(head -c 10 f | tr '\0' .)" = 01...56789 ]
			fallocate -n -l 1000 f; [ "$(stat -c %s f)" = 100 ]`},
	{"links", `echo x >a; ln a b; [ "$(stat -c %h a)" = 2 ]; ln -s a c; [ "$(readlink c)" = a ]; [ "$(cat c)" = x ]
			rm a; [ "$(cat b)" = x ]; ! cat c 2>/dev/null`},
	{"rename over", `echo 1 >a; echo 2 >b; exec 5<b; mv a b; [ "$(cat b)" = 1 ]; [ "$(cat <&5)" = 2 ]; [ ! -e a ]
			mkdir d e; mv -T d e; [ -d e ]; [ ! -e d ]`},
	{"unlinked but open", `echo secret >f; exec 5<>f; rm f; [ ! -e f ]; [ "$(cat /proc/self/fd/5)" = secret ]
			echo more >&5; [ "$(stat -Lc %h /proc/self/fd/5)" = 0 ]`},
	{"special files", `mkfifo p; [ -p p ]; (echo through >p &); [ "$(cat p)" = through ]
			mknod c c 1 3; [ "$(stat -c %t,%T c)" = 1,3 ]
			python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind("s")'; [ -S s ]`},
	{"attributes", `touch -d @1000000000.123456789 f; [ "$(stat -c %.9Y f)" = 1000000000.123456789 ]
			touch -d @-5.5 f; [ "$(stat -c %Y f)" = -6 ]
			chmod 4751 f; [ "$(stat -c %a f)" = 4751 ]; chown 12:34 f; [ "$(stat -c %u:%g:%a f)" = 12:34:751 ]`},
	{"umask", `umask 027; touch f; mkdir d; [ "$(stat -c %a f d | tr '\n' ,)" = 640,750, ]`},
	{"copy keeps all", `echo data >a; chmod 640 a; touch -d @1234567890 a; setfattr -n user.k -v v a; cp -a a b
			[ "$(stat -c %a:%Y b)" = 640:1234567890 ]; [ "$(getfattr --only-values -n user.k b)" = v ]`},
	{"xattrs", `touch f; setfattr -n user.one -v 1 f; setfattr -n user.two -v 22 f
			[ "$(getfattr f | grep -c user)" = 2 ]; setfattr -x user.one f; ! getfattr -n user.one f 2>/dev/null
			! setfattr -n security.x -v 1 f 2>/dev/null`},
	{"many entries", `mkdir d; cd d; seq 5000 | xargs touch; [ "$(ls | wc -l)" = 5000 ]; [ "$(ls -l | wc -l)" = 5001 ]
			[ "$(find . -type f | sort | uniq | wc -l)" = 5000 ]; cd ..; rm -rf d; [ ! -e d ]`},
	{"deep tree", `p=.; for i in $(seq 60); do p=$p/d$i; done; mkdir -p $p; echo x >$p/f; [ "$(find . -name f | wc -l)" = 1 ]; rm -rf d1`},
	{"tar", `mkdir src; for i in $(seq 200); do head -c $((i * 700)) /dev/urandom >src/$i; done; tar cf t.tar src
			mkdir out; tar xf t.tar -C out; diff -r src out/src; rm -rf src out`},
	{"sqlite", `for mode in delete wal; do
				sqlite3 $mode.db "pragma journal_mode=$mode; create table t(k integer primary key, v blob);" >/dev/null
				for i in $(seq 20); do echo "insert into t(v) values(randomblob(3000));"; done | sqlite3 $mode.db
				sqlite3 $mode.db 'begin; insert into t(v) select randomblob(2000) from t, t as u; delete from t where k % 3 = 0; commit; vacuum;'
				[ "$(sqlite3 $mode.db 'pragma integrity_check; select count(*) from t')" = "$(printf 'ok\n280')" ]
			done`},
	{"mmap", `python3 - <<-'PY'
			import mmap, os
			with open("m", "w+b") as f:
			    f.truncate(300000)
			    m = mmap.mmap(f.fileno(), 300000)
			    m[0:5] = b"start"; m[150000:150003] = b"mid"; m[299997:300000] = b"end"
			    m.flush(); m[7:9] = b"zz"; m.close()
			b = open("m", "rb").read()
			assert len(b) == 300000 and b[:9] == b"start\0\0zz" and b[150000:150003] == b"mid" and b[-3:] == b"end"
			PY`},
	{"run a program from it", `cp /bin/true prog; ./prog`},
	{"fsync", `dd if=/dev/zero of=f bs=100k count=30 conv=fsync status=none; sync f; sync .; [ "$(stat -c %s f)" = 3072000 ]`},
	{"locks", `touch l; flock l -c 'flock -n l true && exit 1 || exit 0'`},
	{"names", `touch "$(printf 'a b\nc\t\\')" 'ünï' -- -x; [ "$(ls -A | wc -l)" -ge 3 ]
			n=$(head -c 255 /dev/zero | tr '\0' n); touch $n; ! touch ${n}n 2>/dev/null
			mkdir new; cd new; for do in rmdir rm cat 'chmod 1'; do
				why=$(LC_ALL=C $do ${n}n 2>&1) || true
				case $why in *'File name too long'*) ;; *) exit 1 ;; esac
			done`},
	{"sparse copy", `truncate -s 10M s; echo x | dd of=s bs=1 seek=5000000 conv=notrunc status=none; cp --sparse=always s c; cmp s c`},
	{"seek", `truncate -s 200M s; printf data | dd of=s bs=1 seek=100000000 conv=notrunc status=none; python3 - <<-'PY'
			import errno, os
			fd = os.open("s", os.O_RDWR)
			assert os.lseek(fd, 0, os.SEEK_DATA) == 100000000 and os.lseek(fd, 100000001, os.SEEK_HOLE) == 100000004
			assert os.lseek(fd, 0, os.SEEK_HOLE) == 0 and os.lseek(fd, 150000000, os.SEEK_HOLE) == 150000000
			for off, whence in (150000000, os.SEEK_DATA), (200 << 20, os.SEEK_HOLE):
			    try: os.lseek(fd, off, whence)
			    except OSError as e: assert e.errno == errno.ENXIO
			    else: assert False
			os.pwrite(fd, b"dirty", 5000)
			assert os.lseek(fd, 0, os.SEEK_DATA) == 5000 and os.lseek(fd, 5000, os.SEEK_HOLE) == 5005
			PY
			cp s c; cmp s c; cp --sparse=never s d; cmp s d`},
	{"statfs", `df . | tail -1 | grep -q koinon; [ "$(stat -f -c %l .)" = 255 ]`},
	{"exchange", `echo 1 >a; echo 2 >b; python3 - <<-'PY'
			import ctypes
			libc = ctypes.CDLL(None, use_errno=True)
			assert libc.renameat2(-100, b"a", -100, b"b", 2) == 0
			assert libc.renameat2(-100, b"a", -100, b"b", 1) == -1 and ctypes.get_errno() == 17
			assert libc.renameat2(-100, b"a", -100, b"b", 4) == -1 and ctypes.get_errno() == 22
			PY
			[ "$(cat a b | tr -d '\n')" = 21 ]`},
}

// TestWorkloads runs each workload in a fresh directory of one mount.
func TestWorkloads(t *testing.T) {
	dir := mounted(t)
	for _, w := range workloads {
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			sub := dir + "/" + t.Name()[len("TestWorkloads/"):]
			sh(t, dir, "mkdir '"+sub+"'")
			sh(t, sub, w.script)
		})
	}
}
