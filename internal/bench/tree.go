package bench

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// A plan is the part of a source tree that is copied in.
type plan struct {
	root    string
	dirs    []string // relative, parents before children, "." first
	files   []planFile
	bytes   int64
	skipped int // symlinks and special files
	whole   bool
}

type planFile struct {
	path string // relative
	dir  int    // index in dirs
	mode uint32
	size int64
	crc  uint32 // CRC32C, filled in by warmSource
}

// errEnough ends the walk of a source tree.
var errEnough = errors.New("enough files")

// readPlan lists root in name order up to limit files. Directories that it did
// not reach are left out.
func readPlan(root string, limit int) (*plan, error) {
	p := &plan{root: root, whole: true}
	dirs := map[string]int{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		switch {
		case d.IsDir():
			dirs[rel] = len(p.dirs)
			p.dirs = append(p.dirs, rel)
		case !d.Type().IsRegular():
			p.skipped++
		default:
			if len(p.files) == limit {
				p.whole = false
				return errEnough
			}
			fi, err := d.Info()
			if err != nil {
				return err
			}
			p.files = append(p.files, planFile{path: rel, dir: dirs[filepath.Dir(rel)], mode: uint32(fi.Mode().Perm() | 0o600), size: fi.Size()})
			p.bytes += fi.Size()
		}
		return nil
	})
	if err != nil && !errors.Is(err, errEnough) {
		return nil, fmt.Errorf("reading the source tree: %w; name another with --tree", err)
	}
	if len(p.files) == 0 {
		return nil, fmt.Errorf("the source tree %s has no files; name another with --tree", root)
	}
	return p, nil
}

// DefaultTree returns the sources of the Go that is installed here, "" when
// there is none.
func DefaultTree(ctx context.Context) string {
	root := os.Getenv("GOROOT")
	if root == "" {
		out, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
		if err != nil {
			return "" // no Go here is no trouble: the tree tests are left out
		}
		root = strings.TrimSpace(string(out))
	}
	src := filepath.Join(root, "src")
	if fi, err := os.Stat(src); root == "" || err != nil || !fi.IsDir() {
		return ""
	}
	return src
}

// castagnoli is no variable: see block.Checksum.
func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

func makeTreeRoot(b *bed) error {
	b.copied = make([]bool, len(b.plan.files))
	return os.Mkdir(filepath.Join(b.dir, "tree"), 0o755)
}

func (b *bed) treePath(rel string) string { return filepath.Join(b.dir, "tree", rel) }

// warmSource reads the source once, so that every target gets it from memory,
// and notes the sums that readTree checks.
func warmSource(b *bed) error {
	for i := range b.plan.files {
		f := &b.plan.files[i]
		data, err := os.ReadFile(filepath.Join(b.plan.root, f.path))
		if err != nil {
			return err
		}
		if int64(len(data)) != f.size {
			return fmt.Errorf("%s changed during the run; name a tree that stays as it is with --tree", f.path)
		}
		f.crc = crc32.Checksum(data, castagnoli())
	}
	return nil
}

// makeDirs makes the directories of the tree.
func makeDirs(b *bed, w *worker) {
	for _, d := range b.plan.dirs[1:] {
		if w.halt.Load() {
			return
		}
		if err := os.Mkdir(b.treePath(d), 0o755); err != nil {
			w.fail(err)
		}
	}
}

// take gives out 0, 1, 2, ... once to the workers of a step, -1 after n-1.
func (b *bed) take(n int) int {
	if i := int(b.next.Add(1)) - 1; i < n {
		return i
	}
	return -1
}

func copyTree(b *bed, w *worker) {
	for !w.stop() {
		i := b.take(len(b.plan.files))
		if i < 0 {
			return
		}
		f := &b.plan.files[i]
		from, to := filepath.Join(b.plan.root, f.path), b.treePath(f.path)
		t := w.start()
		err := copyFile(from, to, f.mode, w.buf)
		w.done(t, f.size, err)
		b.copied[i] = err == nil
	}
}

func copyFile(from, to string, mode uint32, buf []byte) error {
	src, err := openRaw(from, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	dst, err := openRaw(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return closing(src, err)
	}
	for off := int64(0); ; {
		n, err := src.readAt(buf[:copyUnit], off)
		if err == nil && n > 0 {
			err = dst.writeAt(buf[:n], off)
		}
		if err != nil || n < copyUnit {
			return closing(src, closing(dst, err))
		}
		off += int64(n)
	}
}

// copyUnit is what cp(1) reads and writes at once.
const copyUnit = 256 << 10

func readTree(b *bed, w *worker) {
	for !w.stop() {
		i := b.take(len(b.plan.files))
		if i < 0 {
			return
		}
		if !b.copied[i] {
			continue
		}
		f := &b.plan.files[i]
		p := b.treePath(f.path)
		t := w.start()
		w.done(t, f.size, readWhole(p, f, w.buf))
	}
}

func readWhole(path string, f *planFile, buf []byte) error {
	h, err := openRaw(path, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	var crc uint32
	off := int64(0)
	for {
		n, err := h.readAt(buf[:copyUnit], off)
		if err != nil {
			return closing(h, err)
		}
		crc = crc32.Update(crc, castagnoli(), buf[:n])
		if off += int64(n); n < copyUnit {
			break
		}
	}
	if off != f.size || crc != f.crc {
		err = fmt.Errorf("read %s: expected %d bytes with CRC32C %08x, found %d with %08x", path, f.size, f.crc, off, crc)
	}
	return closing(h, err)
}

// countEntries notes what a walk must find.
func countEntries(b *bed) error {
	b.expected = make([]int, len(b.plan.dirs))
	index := make(map[string]int, len(b.plan.dirs))
	for i, d := range b.plan.dirs {
		index[d] = i
	}
	for _, d := range b.plan.dirs[1:] {
		b.expected[index[filepath.Dir(d)]]++
	}
	for i, f := range b.plan.files {
		if b.copied[i] {
			b.expected[f.dir]++
		}
	}
	return nil
}

func walkTree(b *bed, w *worker) {
	for !w.stop() {
		i := b.take(len(b.plan.dirs))
		if i < 0 {
			return
		}
		dir := b.treePath(b.plan.dirs[i])
		entries, err := os.ReadDir(dir)
		if err == nil && len(entries) != b.expected[i] {
			err = fmt.Errorf("readdir %s: expected %d entries, found %d", dir, b.expected[i], len(entries))
		}
		if err != nil {
			w.fail(err)
			continue
		}
		for _, e := range entries {
			if w.stop() {
				return
			}
			p := filepath.Join(dir, e.Name())
			t := w.start()
			_, isDir, err := lstatRaw(p)
			if err == nil && isDir != e.IsDir() {
				err = fmt.Errorf("lstat %s: readdir and lstat give different types", p)
			}
			w.done(t, 0, err)
		}
	}
}

// removeFilesOf unlinks the files of directory after directory.
func removeFilesOf(b *bed, w *worker) {
	for !w.stop() {
		i := b.take(len(b.plan.dirs))
		if i < 0 {
			return
		}
		dir := b.treePath(b.plan.dirs[i])
		entries, err := os.ReadDir(dir)
		if err != nil {
			w.fail(err)
			continue
		}
		for _, e := range entries {
			if e.IsDir() {
				continue
			}
			if w.stop() {
				return
			}
			p := filepath.Join(dir, e.Name())
			t := w.start()
			w.done(t, 0, unlinkRaw(p))
		}
	}
}

// removeDirs removes the directories, children before parents.
func removeDirs(b *bed, w *worker) {
	for i := len(b.plan.dirs) - 1; i > 0; i-- {
		if w.stop() || int(b.next.Load()) < len(b.plan.dirs) {
			return // the time was over before all files were gone
		}
		p := b.treePath(b.plan.dirs[i])
		t := w.start()
		w.done(t, 0, os.Remove(p))
	}
}
