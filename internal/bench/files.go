package bench

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
)

// A bed is what one group of tests has made so far in one directory. Each
// worker touches only its own element of the slices.
type bed struct {
	opt     *Options
	dir     string
	workers int

	made     []int // files of the group "files" or "small", by worker
	renamed  []int // of those, the first so many have their second name
	written  []int64
	pages    [][]int
	plan     *plan
	copied   []bool // files of the plan
	expected []int  // entries of each directory of the plan
	next     atomic.Int64
}

func newBed(o *Options, dir string, workers int, p *plan) *bed {
	return &bed{
		opt: o, dir: dir, workers: workers, plan: p,
		made: make([]int, workers), renamed: make([]int, workers),
		written: make([]int64, workers), pages: make([][]int, workers),
	}
}

// makeWorkerDirs makes the directories that the workers' files go to.
func makeWorkerDirs(b *bed) error {
	for w := range b.workers {
		if err := os.MkdirAll(b.workerDir(w), 0o755); err != nil {
			return err
		}
	}
	return nil
}

func (b *bed) workerDir(w int) string {
	if b.opt.Shared {
		return filepath.Join(b.dir, "shared")
	}
	return filepath.Join(b.dir, "w"+strconv.Itoa(w))
}

// paths returns a function that builds the path of worker w's i-th file with
// the given first letter.
func (b *bed) paths(w int) func(letter byte, i int) string {
	buf := append([]byte(b.workerDir(w)), filepath.Separator)
	n := len(buf)
	return func(letter byte, i int) string {
		buf = append(buf[:n], letter)
		buf = strconv.AppendInt(buf, int64(w), 10)
		buf = append(buf, '-')
		buf = strconv.AppendInt(buf, int64(i), 10)
		return string(buf)
	}
}

// fileID numbers worker w's i-th file, for its stamps.
func fileID(w, i int) uint64 { return uint64(w)<<24 | uint64(i) }

func createFiles(b *bed, w *worker) {
	path := b.paths(w.id)
	for i := range share(b.opt.Files, w.id, w.n) {
		if w.stop() {
			return
		}
		p := path('f', i)
		t := w.start()
		h, err := openRaw(p, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		if err == nil {
			err = h.close()
		}
		w.done(t, 0, err)
		b.made[w.id] = i + 1
	}
}

func statFiles(b *bed, w *worker) {
	path := b.paths(w.id)
	for i := range b.made[w.id] {
		if w.stop() {
			return
		}
		p := path('f', i)
		t := w.start()
		size, dir, err := lstatRaw(p)
		if err == nil && (size != 0 || dir) {
			err = fmt.Errorf("lstat %s: expected an empty file, found size %d, directory %v", p, size, dir)
		}
		w.done(t, 0, err)
	}
}

func openFiles(b *bed, w *worker) {
	path := b.paths(w.id)
	for i := range b.made[w.id] {
		if w.stop() {
			return
		}
		p := path('f', i)
		t := w.start()
		h, err := openRaw(p, os.O_RDONLY, 0)
		if err == nil {
			err = h.close()
		}
		w.done(t, 0, err)
	}
}

func renameFiles(b *bed, w *worker) {
	path := b.paths(w.id)
	for i := range b.made[w.id] {
		if w.stop() {
			return
		}
		from, to := path('f', i), path('r', i)
		t := w.start()
		err := renameRaw(from, to)
		w.done(t, 0, err)
		b.renamed[w.id] = i + 1
	}
}

func unlinkFiles(b *bed, w *worker) {
	path := b.paths(w.id)
	for i := range b.made[w.id] {
		if w.stop() {
			return
		}
		letter := byte('f')
		if i < b.renamed[w.id] {
			letter = 'r'
		}
		p := path(letter, i)
		t := w.start()
		err := unlinkRaw(p)
		w.done(t, 0, err)
	}
}

// closing closes h and returns the first error of the two.
func closing(h handle, err error) error {
	if cerr := h.close(); err == nil {
		err = cerr
	}
	return err
}

func writeSmall(sync bool) func(b *bed, w *worker) {
	return func(b *bed, w *worker) {
		path, data := b.paths(w.id), w.buf[:b.opt.SmallSize]
		for i := range share(b.opt.Files, w.id, w.n) {
			if w.stop() {
				return
			}
			stamp(data, fileID(w.id, i), 0)
			p := path('s', i)
			t := w.start()
			h, err := openRaw(p, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
			if err == nil {
				err = h.writeAt(data, 0)
				if err == nil && sync {
					err = h.fsync()
				}
				err = closing(h, err)
			}
			w.done(t, int64(len(data)), err)
			b.made[w.id] = i + 1
		}
	}
}

func readSmall(b *bed, w *worker) {
	path, data := b.paths(w.id), w.buf[:b.opt.SmallSize]
	for i := range b.made[w.id] {
		if w.stop() {
			return
		}
		p := path('s', i)
		t := w.start()
		h, err := openRaw(p, os.O_RDONLY, 0)
		if err == nil {
			var n int
			n, err = h.readAt(data, 0)
			if err == nil && n != len(data) {
				err = fmt.Errorf("read %s: expected %d bytes, found %d", p, len(data), n)
			}
			if err == nil {
				err = checkStamps(data, fileID(w.id, i), 0)
			}
			err = closing(h, err)
		}
		w.done(t, int64(len(data)), err)
	}
}

func seqWrite(sync bool) func(b *bed, w *worker) {
	return func(b *bed, w *worker) {
		h, err := openRaw(b.paths(w.id)('l', 0), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		if err != nil {
			w.fail(err)
			return
		}
		size := share(b.opt.LargeSize, w.id, w.n)
		for off := int64(0); off < size && !w.stop(); off += blockSize {
			data := w.buf[:min(blockSize, size-off)]
			stamp(data, fileID(w.id, 0), uint64(off))
			t := w.start()
			err := h.writeAt(data, off)
			w.done(t, int64(len(data)), err)
			if err != nil {
				break // what follows would read back a hole
			}
			b.written[w.id] = off + int64(len(data))
		}
		err = nil
		if sync {
			err = h.fsync()
		}
		if err := closing(h, err); err != nil {
			w.fail(err)
		}
	}
}

func seqRead(b *bed, w *worker) {
	h, err := openRaw(b.paths(w.id)('l', 0), os.O_RDONLY, 0)
	if err != nil {
		w.fail(err)
		return
	}
	for off := int64(0); off < b.written[w.id] && !w.stop(); off += blockSize {
		data := w.buf[:min(blockSize, b.written[w.id]-off)]
		t := w.start()
		w.done(t, int64(len(data)), readChecked(h, data, fileID(w.id, 0), off))
	}
	if err := h.close(); err != nil {
		w.fail(err)
	}
}

// readChecked fills data from off and checks every page of it.
func readChecked(h handle, data []byte, file uint64, off int64) error {
	n, err := h.readAt(data, off)
	if err == nil && n != len(data) {
		err = fmt.Errorf("read at %d: expected %d bytes, found %d", off, len(data), n)
	}
	if err == nil {
		err = checkStamps(data, file, uint64(off))
	}
	return err
}

// shufflePages puts the pages of each worker's file in a random order, the
// same in every run, so that no page comes twice before all have come once.
func shufflePages(b *bed) error {
	for w := range b.pages {
		rng := rand.New(rand.NewPCG(uint64(w), 4096))
		b.pages[w] = rng.Perm(int(b.written[w] / pageSize))
	}
	return nil
}

func randRead(b *bed, w *worker) {
	h, err := openRaw(b.paths(w.id)('l', 0), os.O_RDONLY, 0)
	if err != nil {
		w.fail(err)
		return
	}
	pages, data := b.pages[w.id], w.buf[:pageSize]
	for i := range share(b.opt.RandomOps, w.id, w.n) {
		if w.stop() || len(pages) == 0 {
			break
		}
		off := int64(pages[i%len(pages)]) * pageSize
		t := w.start()
		w.done(t, pageSize, readChecked(h, data, fileID(w.id, 0), off))
	}
	if err := h.close(); err != nil {
		w.fail(err)
	}
}

func randWrite(b *bed, w *worker) {
	h, err := openRaw(b.paths(w.id)('l', 0), os.O_WRONLY, 0)
	if err != nil {
		w.fail(err)
		return
	}
	pages, data := b.pages[w.id], w.buf[:pageSize]
	for i := range share(b.opt.RandomOps, w.id, w.n) {
		if w.stop() || len(pages) == 0 {
			break
		}
		off := int64(pages[i%len(pages)]) * pageSize
		stamp(data, fileID(w.id, 0), uint64(off))
		t := w.start()
		err := h.writeAt(data, off)
		if err == nil {
			err = h.fsync()
		}
		w.done(t, pageSize, err)
	}
	if err := h.close(); err != nil {
		w.fail(err)
	}
}
