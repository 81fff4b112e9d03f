package proc

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/proc/procpb"
	"github.com/koinon/koinon/internal/sys"
)

// OwnVariables is how the names of variables begin that only Koinon sets in the
// environment of a process.
const OwnVariables = "KOINON_"

// checkNew refuses what Check does, and what older versions accepted. The leader
// asks it of a new job. The machine does not: what a log of those versions holds
// has to end on every replica as it did then.
func checkNew(s *procpb.Spec) error {
	if err := Check(s); err != nil {
		return err
	}
	for _, e := range s.Env {
		if strings.HasPrefix(e, OwnVariables) {
			name, _, _ := strings.Cut(e, "=")
			return sys.E(sys.Op("proc.Check"), sys.Invalid, sys.Subject(name), "names of variables that begin with "+OwnVariables+" are Koinon's own: choose another one")
		}
	}
	if !s.Array && strings.Contains(s.Out, "{}") {
		return sys.E(sys.Op("proc.Check"), sys.Invalid, sys.Subject(s.Out), "{} stands for the index or the file of a task, and there is neither without --array or --each")
	}
	return checkOutApart(s)
}

// checkOutApart refuses items whose outputs would be one directory: only those of the task that ends first could appear.
func checkOutApart(s *procpb.Spec) error {
	if s.Out == "" {
		return nil
	}
	whose := make(map[string]string, len(s.Items))
	for _, item := range s.Items {
		out := outOfItem(s, item)
		if first, twice := whose[out]; twice {
			return sys.E(sys.Op("proc.Check"), sys.Invalid, fmt.Sprintf(
				"the outputs of %q and %q would both appear as %s: {} in --out is the last element of a path; run them as jobs of their own, or rename one", first, item, out))
		}
		whose[out] = item
	}
	return nil
}

// Check refuses a specification that makes no sense, whatever the nodes are.
// Leader and machine ask it.
func Check(s *procpb.Spec) error {
	const op = sys.Op("proc.Check")
	refuse := func(format string, args ...any) error { return sys.E(op, sys.Invalid, fmt.Sprintf(format, args...)) }
	each := s.GetEach()
	switch {
	case s == nil || len(s.Argv) == 0 || s.Argv[0] == "":
		return refuse("a command is wanted: koinon run -- COMMAND ARGUMENT...")
	case pb.Size(s) > SpecMax:
		return refuse("command, environment and items take %d bytes, more than %d: put them into a file of the tree", pb.Size(s), SpecMax)
	case s.Size < 1 || s.Size > SizeMax:
		return refuse("a gang has 1 to %d processes, not %d", SizeMax, s.Size)
	case each.GetCpuMilli() < 0 || each.GetMemory() < 0 || each.GetCpuMilli() == 0 && each.GetMemory() == 0:
		return refuse("every process needs some CPU or memory")
	case each.GetCpuMilli() > 0 && each.GetCpuMilli() < CPUMin:
		return refuse("a process gets %.2g CPUs at least: with less it would hardly start", CPUMin/1000.0)
	case each.GetMemory() > 0 && each.GetMemory() < MemoryMin:
		return refuse("a process gets %d MiB of memory at least, not %d bytes: with less it would not start", MemoryMin>>20, each.GetMemory())
	case s.User == nil:
		return refuse("a job needs a user")
	case s.TimeoutNs < 0 || s.GraceNs < 0:
		return refuse("times are not negative")
	case s.Stdin && (s.Size > 1 || s.Array):
		return refuse("standard input goes to a single process, not to %d", max(uint64(s.Size), tasksOf(s)))
	case len(s.After) > AfterMax:
		return refuse("a job may wait for %d others, not for %d", AfterMax, len(s.After))
	}
	return firstError(checkText(s), checkArray(s), checkEnv(s), checkPath("the working directory", s.Dir), checkOut(s))
}

// checkText refuses what cannot be shown: output as JSON holds no other text.
func checkText(s *procpb.Spec) error {
	texts := slices.Concat(s.Argv, s.Env, s.Items, []string{s.Name, s.Dir, s.Out, s.NearPath, s.User.GetName(), s.User.GetHost()})
	for _, l := range s.Want {
		texts = append(texts, l.Key, l.Value)
	}
	for _, text := range texts {
		if !utf8.ValidString(text) {
			return sys.E(sys.Op("proc.Check"), sys.Invalid, fmt.Sprintf("%q is not UTF-8, as all text of a job has to be: rename the file, or have a script in the tree name it", text))
		}
	}
	return nil
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func checkArray(s *procpb.Spec) error {
	const op = sys.Op("proc.Check")
	switch {
	case !s.Array && (s.First != 0 || s.Last != 0 || s.AtOnce != 0 || len(s.Items) > 0):
		return sys.E(op, sys.Invalid, "only an array has indices and items")
	case s.Array && (s.Last < s.First || tasksOf(s) > ArrayMax):
		return sys.E(op, sys.Invalid, fmt.Sprintf("an array has 1 to %d tasks, not indices %d to %d", ArrayMax, s.First, s.Last))
	case len(s.Items) > 0 && (s.First != 0 || int(s.Last) != len(s.Items)-1):
		return sys.E(op, sys.Invalid, fmt.Sprintf("%d items need indices 0 to %d", len(s.Items), len(s.Items)-1))
	case len(s.NearItems) > 0 && len(s.NearItems) != len(s.Items):
		return sys.E(op, sys.Invalid, "every item or none says where it is")
	}
	return nil
}

func checkEnv(s *procpb.Spec) error {
	for _, e := range s.Env {
		switch name, _, ok := strings.Cut(e, "="); {
		case !ok || name == "":
			return sys.E(sys.Op("proc.Check"), sys.Invalid, sys.Subject(e), "an environment variable is NAME=VALUE")
		case strings.ContainsRune(e, 0):
			return sys.E(sys.Op("proc.Check"), sys.Invalid, fmt.Sprintf("the environment variable %q holds a zero byte, which no process can be given", e))
		}
	}
	for _, a := range s.Argv {
		if strings.ContainsRune(a, 0) {
			return sys.E(sys.Op("proc.Check"), sys.Invalid, "an argument holds no zero byte")
		}
	}
	return nil
}

func checkPath(what, p string) error {
	if p != "" && (!path.IsAbs(p) || path.Clean(p) != p || len(p) > sys.PathMax) {
		return sys.E(sys.Op("proc.Check"), sys.Invalid, sys.Subject(p), what+" is a path in the tree, from its root on")
	}
	return nil
}

func checkOut(s *procpb.Spec) error {
	if err := checkPath("the directory of outputs", s.Out); err != nil || s.Out == "" {
		return err
	}
	switch {
	case s.Out == "/" || s.Out == "/.koinon" || strings.HasPrefix(s.Out, "/.koinon/"):
		return sys.E(sys.Op("proc.Check"), sys.Invalid, sys.Subject(s.Out), "outputs cannot appear there: name a directory that does not exist yet")
	case tasksOf(s) > 1 && !strings.Contains(s.Out, "{}"):
		return sys.E(sys.Op("proc.Check"), sys.Invalid, sys.Subject(s.Out), "each task of an array needs a directory of its own: put {} into its name")
	}
	return nil
}

// tasksOf is how many tasks a job has.
func tasksOf(s *procpb.Spec) uint64 {
	if !s.Array {
		return 1
	}
	return uint64(s.Last) - uint64(s.First) + 1
}

// Item is what {} stands for in a task; empty when nothing does.
func Item(s *procpb.Spec, index uint32) string {
	switch {
	case !s.Array:
		return ""
	case int(index) < len(s.Items):
		return s.Items[index]
	}
	return fmt.Sprint(index)
}
