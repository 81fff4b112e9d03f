//go:build linux

package test

import (
	"path/filepath"
	"strings"
	"testing"
)

// program is what somebody runs in the tree.
type program struct{ name, script string }

// TestPrograms runs what people run: each line is a program that breaks on a
// file system that cuts corners.
func TestPrograms(t *testing.T) {
	d := up(t, 3)
	repo, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range programs(repo) {
		t.Run(tc.name, func(t *testing.T) {
			if out, err := d.shell(tc.script); err != nil {
				t.Fatalf("%s\n%v\n%s", strings.TrimSpace(tc.script), err, out)
			}
		})
	}
	d.fsck()
}

// programs are shell scripts; $M is the mount, repo a source tree outside it.
func programs(repo string) []program {
	return append(workPrograms(repo), edgePrograms()...)
}

func workPrograms(repo string) []program {
	return []program{
		{"git", `
			git init -q $M/origin && cd $M/origin
			git config user.email a@b && git config user.name a
			cp -r ` + repo + `/internal/sys ` + repo + `/paxos . && git add . && git commit -q -m one
			for i in 1 2 3; do echo $i >> sys/doc.go; git commit -q -a -m $i; done
			git clone -q $M/origin $M/clone && cd $M/clone
			git fsck --full --strict && git gc -q && git fsck --full
			test "$(git log --oneline | wc -l)" = 4
			git -C $M/origin status --porcelain | wc -l | grep -qx 0`},
		{"go build", `
			mkdir -p $M/hello $M/gocache $M/gotmp && cd $M/hello
			printf 'module hello\n\ngo 1.21\n' > go.mod
			printf 'package main\n\nimport "fmt"\n\nfunc main() { fmt.Println("hello from the tree") }\n' > main.go
			export GOCACHE=$M/gocache GOTMPDIR=$M/gotmp GOFLAGS=-buildvcs=false
			go build -o hello . && test "$(./hello)" = "hello from the tree"
			sed -i s/hello\ from/again/ main.go && go build -o hello . && ./hello | grep -q again`},
		{"sqlite3 with its journal", `
			cd $M && sqlite3 db 'create table t(a integer primary key, b text); pragma journal_mode'
			for i in $(seq 20); do sqlite3 db "begin; insert into t(b) values('row $i'); insert into t(b) select b from t limit 50; commit"; done
			sqlite3 db 'pragma journal_mode=delete; begin; delete from t; rollback; pragma integrity_check' | grep -q ok
			test "$(sqlite3 db 'select count(*)>100 from t')" = 1`},
		{"tar", `
			mkdir $M/tar && cd $M/tar && tar -C ` + repo + ` -cf all.tar internal paxos && mkdir x && tar -C x -xf all.tar
			diff -r ` + repo + `/internal x/internal && diff -r ` + repo + `/paxos x/paxos`},
		{"rsync -a", `
			rsync -a ` + repo + `/internal $M/rsynced/ && rsync -a ` + repo + `/internal $M/rsynced/
			test -z "$(rsync -ain ` + repo + `/internal $M/rsynced/)"
			diff -r ` + repo + `/internal $M/rsynced/internal`},
	}
}

func edgePrograms() []program {
	return []program{
		{"save by rename", `
			mkdir $M/edit && cd $M/edit && echo one > f && chmod 640 f
			for i in $(seq 50); do
				mv f f~ && echo "text $i" > f && chmod 640 f && rm f~
				echo "text $i b" > .f.swp && sync .f.swp && mv .f.swp f
				test "$(cat f)" = "text $i b"
			done
			test "$(ls -A | wc -l)" = 1`},
		{"append from many writers of one mount", `
			cd $M && for w in 1 2 3 4; do (for i in $(seq 100); do echo "$w $i" >> appended; done) & done; wait
			test "$(wc -l < appended)" = 400 && test "$(sort -u appended | wc -l)" = 400`},
		{"sparse files and truncate", `
			cd $M && truncate -s 3G sparse && test "$(stat -c %s sparse)" = 3221225472
			printf end | dd of=sparse bs=1 seek=3000000000 conv=notrunc status=none
			test "$(tail -c +3000000001 sparse | head -c 3)" = end
			test "$(head -c 1000000 sparse | tr -d '\0' | wc -c)" = 0
			truncate -s 2 sparse && truncate -s 10 sparse && od -An -tx1 sparse | tr -d ' \n' | grep -qx 00000000000000000000`},
		{"unlinked and open", `
			cd $M && exec 3<>ghost && echo boo >&3 && rm ghost && ! test -e ghost
			cat < /proc/self/fd/3 | grep -q boo && echo more >&3 && exec 3>&-`},
		{"a directory of 3,000 and rm -rf", `
			mkdir $M/big && cd $M/big && seq 3000 | xargs touch && test "$(ls | wc -l)" = 3000 && cd .. && rm -rf big && ! test -e big`},
		{"names of any bytes", `
			mkdir $M/names && cd $M/names && touch "$(printf 'a\377\376b')" "$(printf 'line\nbreak')" 'sp ace' && test "$(find . -type f -print0 | tr -cd '\0' | wc -c)" = 3
			long=$(printf 'n%.0s' $(seq 255)) && touch $long && test -e $long && ! touch n$long 2>/dev/null
			rm -r $M/names`},
		{"extended attributes and modes", `
			cd $M && touch x && setfattr -n user.k -v v x && getfattr --only-values -n user.k x | grep -qx v && setfattr -x user.k x
			mkdir g && chgrp 1234 g && chmod 2775 g && touch g/f && mkdir g/d && test "$(stat -c %g g/f)" = 1234 && test "$(stat -c %a g/d | cut -c1)" = 2
			mkdir s && chmod 1777 s && touch s/mine && ! setpriv --reuid 1000 --regid 1000 --clear-groups rm -f s/mine 2>/dev/null && test -e s/mine
			chmod 600 x && ! setpriv --reuid 1000 --regid 1000 --clear-groups cat x 2>/dev/null`},
	}
}
