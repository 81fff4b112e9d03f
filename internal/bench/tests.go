package bench

import "slices"

// A step is one test of a group: what it is called, how it is reported, and
// what a worker does in it. prep, where there is one, runs before the clock
// starts.
type step struct {
	name  string
	what  string // for people
	unit  string // of the rate: "ops/s", "MiB/s", "files/s", "entries/s"
	fsync bool   // whether each operation waits for the disk
	cold  bool   // whether the kernel's caches are dropped before it
	size  func(o *Options) int64
	prep  func(b *bed) error
	first func(b *bed, w *worker) // by worker 0, on the clock, before work begins
	work  func(b *bed, w *worker)
	last  func(b *bed, w *worker) // by worker 0, on the clock, after work has ended everywhere
	needs []string                // steps of the group that must have run before
}

// A group is a list of steps that build on one another in one directory.
type group struct {
	name  string
	setup func(b *bed) error
	steps []step
}

func noSize(*Options) int64      { return 0 }
func smallSize(o *Options) int64 { return o.SmallSize }
func seqSize(*Options) int64     { return blockSize }
func randSize(*Options) int64    { return pageSize }

// find returns the index of the step called name, -1 for none.
func (g *group) find(name string) int {
	return slices.IndexFunc(g.steps, func(s step) bool { return s.name == name })
}

// groups lists everything there is to measure, in the order of the report.
func groups() []group {
	return []group{
		{name: "files", setup: makeWorkerDirs, steps: []step{
			{name: "create", what: "open(O_CREAT|O_EXCL) and close of an empty file", unit: "ops/s", size: noSize, work: createFiles},
			{name: "stat", what: "lstat of each file", unit: "ops/s", cold: true, size: noSize, work: statFiles, needs: []string{"create"}},
			{name: "open", what: "open for reading and close", unit: "ops/s", cold: true, size: noSize, work: openFiles, needs: []string{"create"}},
			{name: "rename", what: "rename within the directory", unit: "ops/s", size: noSize, work: renameFiles, needs: []string{"create"}},
			{name: "unlink", what: "unlink", unit: "ops/s", size: noSize, work: unlinkFiles, needs: []string{"create"}},
		}},
		{name: "small", setup: makeWorkerDirs, steps: []step{
			{name: "write-small", what: "create, write and close a small file", unit: "ops/s", size: smallSize, work: writeSmall(false)},
			{name: "read-small", what: "open, read and close a small file", unit: "ops/s", cold: true, size: smallSize, work: readSmall, needs: []string{"write-small"}},
		}},
		{name: "small-fsync", setup: makeWorkerDirs, steps: []step{
			{name: "write-small-fsync", what: "create, write, fsync and close a small file", unit: "ops/s", fsync: true, size: smallSize, work: writeSmall(true)},
		}},
		{name: "large", setup: makeWorkerDirs, steps: []step{
			{name: "seq-write", what: "write a large file per worker in 1 MiB writes, close", unit: "MiB/s", size: seqSize, work: seqWrite(false)},
			{name: "seq-read", what: "read it in 1 MiB reads", unit: "MiB/s", cold: true, size: seqSize, work: seqRead, needs: []string{"seq-write"}},
			{name: "rand-read", what: "read 4 KiB pages in random order", unit: "ops/s", cold: true, size: randSize, prep: shufflePages, work: randRead, needs: []string{"seq-write"}},
			{name: "rand-write-fsync", what: "overwrite a random 4 KiB page, fsync", unit: "ops/s", fsync: true, size: randSize, prep: shufflePages, work: randWrite, needs: []string{"seq-write"}},
		}},
		{name: "large-fsync", setup: makeWorkerDirs, steps: []step{
			{name: "seq-write-fsync", what: "write a large file per worker in 1 MiB writes, fsync at the end, close", unit: "MiB/s", fsync: true, size: seqSize, work: seqWrite(true)},
		}},
		{name: "tree", setup: makeTreeRoot, steps: []step{
			{name: "copy-in", what: "copy a source tree in", unit: "files/s", size: noSize, prep: warmSource, first: makeDirs, work: copyTree},
			{name: "read-tree", what: "read every file of it", unit: "files/s", cold: true, size: noSize, work: readTree, needs: []string{"copy-in"}},
			{name: "walk", what: "list every directory of it and lstat every entry", unit: "entries/s", cold: true, size: noSize, prep: countEntries, work: walkTree, needs: []string{"copy-in"}},
			{name: "remove", what: "remove it all", unit: "entries/s", size: noSize, work: removeFilesOf, last: removeDirs, needs: []string{"copy-in"}},
		}},
	}
}

// TestNames lists the names that Options.Only takes, in the order of a report.
func TestNames() []string {
	var names []string
	for _, g := range groups() {
		for _, s := range g.steps {
			names = append(names, s.name)
		}
	}
	return names
}

// Describe returns one line about the test called name, "" for an unknown one.
func Describe(name string) string {
	for _, g := range groups() {
		if i := g.find(name); i >= 0 {
			return g.steps[i].what
		}
	}
	return ""
}
