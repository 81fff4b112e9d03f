package proc

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/koinon/koinon/commit"
	"github.com/koinon/koinon/internal/proc/procpb"
	"github.com/koinon/koinon/internal/sys"
)

// Name names a job, a task of an array, or a process of a gang, as people
// write it: JOB[.INDEX][:RANK]. Index and Rank are -1 where they are not given.
type Name struct {
	Job   uint64
	Index int
	Rank  int
}

// ParseName reads a name.
func ParseName(s string) (Name, error) {
	n := Name{Index: -1, Rank: -1}
	bad := func() (Name, error) {
		return Name{}, sys.E(sys.Op("proc.ParseName"), sys.Invalid, sys.Subject(s), "a job's number is wanted, such as 17; 17.4 for index 4 of an array, 17:1 for rank 1 of a gang")
	}
	rest, rank, hasRank := strings.Cut(s, ":")
	job, index, hasIndex := strings.Cut(rest, ".")
	id, err := strconv.ParseUint(job, 10, 64)
	if err != nil || id == 0 {
		return bad()
	}
	n.Job = id
	if hasIndex {
		i, err := strconv.ParseUint(index, 10, 31)
		if err != nil {
			return bad()
		}
		n.Index = int(i)
	}
	if hasRank {
		r, err := strconv.ParseUint(rank, 10, 31)
		if err != nil {
			return bad()
		}
		n.Rank = int(r)
	}
	return n, nil
}

// IsJob says that the name means a job as a whole.
func (n Name) IsJob() bool { return n.Index < 0 && n.Rank < 0 }

// String is what ParseName reads.
func (n Name) String() string {
	s := strconv.FormatUint(n.Job, 10)
	if n.Index >= 0 {
		s += "." + strconv.Itoa(n.Index)
	}
	if n.Rank >= 0 {
		s += ":" + strconv.Itoa(n.Rank)
	}
	return s
}

// TaskName names a task of a job: the job alone where that is no array.
func TaskName(spec *procpb.Spec, job uint64, index uint32) Name {
	n := Name{Job: job, Index: -1, Rank: -1}
	if spec.GetArray() {
		n.Index = int(index)
	}
	return n
}

// ProcessName names a process: the task alone where that has one.
func ProcessName(spec *procpb.Spec, job uint64, index, rank uint32) Name {
	n := TaskName(spec, job, index)
	if spec.GetSize() > 1 {
		n.Rank = int(rank)
	}
	return n
}

// Directories of the tree.
const (
	Dir    = "/.koinon/proc" // with a directory for each process
	OutDir = "/.koinon/out"  // with the private directories of --out
)

// FilesDir is where the files stdout, stderr and status of a process are.
func FilesDir(n Name) string { return Dir + "/" + n.String() }

// OutPath is the private directory of a try of a task.
func OutPath(task Name, epoch uint32) string { return fmt.Sprintf("%s/%v-%d", OutDir, task, epoch) }

// Over says whether a state is an end.
func Over(s procpb.State) bool { return s >= procpb.State_EXITED }

// PartyOf names a node in transactions: another one each time that it was
// declared lost.
func PartyOf(node, fence uint64) commit.Party { return commit.Party(node<<24 | fence&(1<<24-1)) }
