//go:build linux

package test

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// countScript counts the words of its standard input: one line for each word.
const countScript = `tr -cs '[:alpha:]' '\n' | grep . | LC_ALL=C sort | uniq -c`

// TestCountWords counts the words of real text (Go's own source and what there
// is of documentation) as docs/processes.md has it: a task for each file near
// its bytes, and one that adds up when all have succeeded. The result is that of
// one machine. It reports the share of the bytes that tasks read which the node
// they ran on holds; `make words` does it with 1 GiB.
func TestCountWords(t *testing.T) {
	mib := int64(setting(t, "KOINON_WORDS_MIB", 8))
	d := up(t, 4) // three copies: not every node holds everything
	text := filepath.Join(d.mount, "text")
	for _, dir := range []string{text, filepath.Join(d.mount, "counts")} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	files := writeText(t, text, mib<<20)
	began := time.Now()
	job := strings.TrimSpace(d.inMount("run", "-d", "-q", "-c", "0.5", "--retries", "1", "--each", "text/*.txt", "--out", "counts/{}",
		"--", "sh", "-c", "< {} "+countScript+" > $KOINON_OUT/words"))
	d.inMount("run", "--after", "ok:"+job, "--near", "counts", "--out", "total", "--", "sh", "-c",
		`cat counts/*/words | awk '{ n[$2] += $1 } END { for (w in n) print n[w], w }' | LC_ALL=C sort > $KOINON_OUT/words`)
	took := time.Since(began)
	one := exec.Command("bash", "-c", "cat "+text+"/*.txt | "+countScript+` | awk '{ print $1, $2 }' | LC_ALL=C sort`)
	want, err := one.Output()
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(d.mount, "total/words"))
	if err != nil || !bytes.Equal(got, want) || len(want) < 1000 {
		t.Errorf("%d bytes counted on the nodes, %d on one machine, or not the same: %v", len(got), len(want), err)
	}
	share := d.localShare(job)
	t.Logf("%d MiB in %d files, %d different words, counted in %v; %.0f%% of the bytes at a node that holds them", mib, files, bytes.Count(want, []byte("\n")), took.Round(time.Millisecond), 100*share)
	if share < 0.9 {
		t.Errorf("at least 90%% of the bytes expected to be read at a node that holds them, found %.0f%%", 100*share)
	}
}

// inMount runs the binary in the mount.
func (d *dev) inMount(args ...string) string {
	d.t.Helper()
	cmd := d.runCommand(args...)
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	if err != nil {
		d.t.Fatalf("koinon %s: %v\n%s%s", strings.Join(args, " "), err, out, errOut.String())
	}
	return string(out)
}

// writeText fills a directory with text, in files of up to 32 MiB and at least
// eight of them. It returns how many.
func writeText(t *testing.T, dir string, size int64) int {
	t.Helper()
	each := min(32<<20, max(1<<20, size/8))
	goroot := strings.TrimSpace(string(must(t, exec.Command("go", "env", "GOROOT").Output)))
	n, buf := 0, bytes.Buffer{}
	flush := func() {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%03d.txt", n)), buf.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		n++
		size -= int64(buf.Len())
		buf.Reset()
	}
	for round := 0; size > 0; round++ {
		before := size
		for _, root := range []string{filepath.Join(goroot, "src"), "/usr/share/doc"} {
			if err := filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
				if err != nil || !e.Type().IsRegular() || size <= 0 {
					return nil // what cannot be read is not text
				}
				if raw, err := os.ReadFile(p); err == nil && utf8.Valid(raw) && !bytes.Contains(raw, []byte{0}) {
					buf.Write(raw)
					buf.WriteByte('\n')
				}
				if int64(buf.Len()) >= min(each, size) {
					flush()
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
		}
		if size == before && buf.Len() == 0 {
			t.Fatal("there is no text to be found")
		}
	}
	return n
}

func must[T any](t *testing.T, f func() (T, error)) T {
	t.Helper()
	v, err := f()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// localShare is the share of the bytes of a job's items that are held by the
// nodes on which the tasks ran.
func (d *dev) localShare(job string) float64 {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	procs := d.procs()
	tree, err := procs.Tree(ctx)
	if err != nil {
		d.t.Fatal(err)
	}
	details, err := procs.Inspect(ctx, job)
	if err != nil {
		d.t.Fatal(err)
	}
	var local, all int64
	for _, task := range details.TaskList {
		at, err := tree.Locate(ctx, "/"+task.Item)
		if err != nil {
			d.t.Fatal(err)
		}
		all += at.Total
		local += min(at.Total, at.Bytes[task.Processes[0].Node])
	}
	if all == 0 {
		d.t.Fatal("the tasks have read nothing")
	}
	return float64(local) / float64(all)
}
