package koinon_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/koinon/koinon"

// layers is architecture.md's table: which packages of ours a package may
// import beside those in forAll. A trailing "/..." stands for a package and all
// below it; "*" for anything. The longest key that matches a package decides.
var layers = map[string][]string{
	"paxos":                          {},
	"commit":                         {},
	"internal/sys":                   {},
	"internal/env":                   {},
	"internal/env/envfs":             {},
	"internal/pb":                    {},
	"internal/rsm":                   {},
	"internal/placement":             {},
	"internal/electorate":            {},
	"internal/atomicfile":            {},
	"internal/auth":                  {"internal/atomicfile"},
	"internal/wire":                  {},
	"internal/engine":                {},
	"internal/config":                {"internal/atomicfile", "internal/engine"},
	"internal/bench":                 {},
	"internal/block":                 {},
	"internal/block/blocktest":       {"internal/block"},
	"internal/block/disk":            {"internal/block", "internal/env/envfs"},
	"internal/block/redis":           {"internal/block", "internal/engine"},
	"internal/block/redis/redistest": {"internal/ports"},
	"internal/blockcopy":             {"internal/block"},
	"internal/block/spread":          {"internal/block/...", "internal/placement", "internal/wire"},
	"internal/replica":               {"paxos", "internal/env/envfs", "internal/rsm", "internal/wire", "internal/replica/..."},
	"internal/replica/wal":           {"internal/env/envfs"},
	"internal/cluster":               {"internal/auth", "internal/wire", "internal/rsm", "internal/placement"},
	"internal/meta":                  {},
	"internal/meta/metatest":         {"internal/meta", "internal/meta/dump"},
	"internal/meta/dump":             {"internal/meta"},
	"internal/meta/embedded":         {"internal/meta", "internal/rsm"},
	"internal/meta/mysql":            {"internal/meta", "internal/engine"},
	"internal/meta/mysql/mysqltest":  {"internal/ports"},
	"internal/meta/remote":           {"internal/meta", "internal/meta/embedded", "internal/rsm", "internal/wire", "internal/cluster"},
	"internal/kv":                    {"internal/rsm", "internal/wire", "internal/cluster"},
	"internal/vfs":                   {"internal/meta", "internal/block"},
	"internal/fusefs":                {"internal/vfs", "internal/meta"},
	"internal/collect":               {"internal/meta", "internal/block"},
	"internal/fsck":                  {"internal/meta", "internal/block"},
	"internal/devcluster":            {"internal/auth", "internal/config", "internal/daemon", "internal/engine", "internal/mountinfo", "internal/ports"},
	"internal/daemon":                {"internal/program"},
	"internal/logfile":               {},
	"internal/accounts":              {},
	"internal/mountinfo":             {},
	"internal/ports":                 {},
	"internal/proc":                  {"commit", "internal/cluster", "internal/meta", "internal/meta/embedded", "internal/proc/sched", "internal/rsm", "internal/wire"},
	"internal/proc/agent":            {"commit", "internal/accounts", "internal/atomicfile", "internal/cluster", "internal/daemon", "internal/env/envfs", "internal/meta", "internal/mountinfo", "internal/proc", "internal/proc/executor", "internal/vfs", "internal/wire"},
	"internal/proc/executor":         {"internal/daemon", "internal/program"},
	"internal/proc/proctest":         {"internal/proc"},
	"internal/proc/sched":            {},
	"internal/sim":                   {"*"},
	"internal/node":                  {"*"},
	"internal/client": {"internal/atomicfile", "internal/auth", "internal/block", "internal/block/redis", "internal/block/spread", "internal/blockcopy", "internal/cluster",
		"internal/config", "internal/electorate", "internal/engine", "internal/fsck", "internal/kv", "internal/meta", "internal/meta/dump", "internal/meta/remote",
		"internal/placement", "internal/proc", "internal/vfs", "internal/wire"},
	"internal/program":      {},
	"internal/pb/plain":     {},
	"internal/program/join": {"internal/atomicfile", "internal/program"},
	"":                      {"internal/accounts", "internal/vfs", "internal/client", "internal/config", "internal/meta", "internal/block", "internal/kv", "internal/proc"},
	"cmd/koinon":            {"*"},
	"bench/consensus":       {"*"},
	"test":                  {"*"},
}

// forAll are the packages that all may import but forNone.
var (
	forAll  = []string{"internal/sys", "internal/env", "internal/pb"}
	forNone = []string{"paxos", "commit", "internal/sys", "internal/env", "internal/pb"}
)

// pure packages have no goroutine, clock, I/O or global randomness.
var pure = []string{"paxos", "commit", "internal/placement", "internal/electorate", "internal/proc/sched"}

// nodeOnly are beginnings of imports that neither the client's program nor a program that uses the root package has: what is
// linked is started each time that a program is (docs/decisions/0022-two-programs.md).
var nodeOnly = []string{"github.com/cockroachdb/", "github.com/prometheus/", "github.com/hanwen/", "github.com/containerd/", "google.golang.org/", "net/http", module + "/internal/node"}

// impure are the imports that a pure package may not have.
var impure = []string{"time", "os", "net", "io", "sync", "context", "log", "log/slog"}

// longFunctions and longFiles are the exceptions to the limits. They only
// shrink: a name here that keeps to the limit fails the test.
var (
	longFunctions = map[string]bool{}
	longFiles     = map[string]bool{}
)

const (
	functionLinesMax = 70
	fileLinesMax     = 800
)

type source struct {
	path string // relative to the root
	pkg  string // directory, "" for the root
	file *ast.File
	text string
	test bool
}

func TestTidy(t *testing.T) {
	fset := token.NewFileSet()
	files := sources(t, fset)
	if len(files) < 20 {
		t.Fatalf("found only %d Go files: the walk is broken", len(files))
	}
	documented := map[string]bool{}
	for _, f := range files {
		checkLayers(t, f)
		checkLength(t, fset, f)
		checkStyle(t, fset, f)
		if f.file.Doc != nil {
			documented[f.pkg] = true
		}
	}
	for _, f := range files {
		if !f.test && !documented[f.pkg] {
			documented[f.pkg] = true
			t.Errorf("%s: package %s has no package comment", f.path, f.file.Name.Name)
		}
	}
	for name := range longFunctions {
		t.Errorf("%s keeps to the limit now (or is gone): take it from longFunctions", name)
	}
	for name := range longFiles {
		t.Errorf("%s keeps to the limit now (or is gone): take it from longFiles", name)
	}
}

func sources(t *testing.T, fset *token.FileSet) []source {
	var files []source
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "tools" || d.Name() == "testdata" || (strings.HasPrefix(d.Name(), ".") && path != ".")) {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, ".pb.go") {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		file, err := parser.ParseFile(fset, path, text, parser.ParseComments)
		if err != nil {
			return err
		}
		pkg := filepath.ToSlash(filepath.Dir(path))
		if pkg == "." {
			pkg = ""
		}
		files = append(files, source{path, pkg, file, string(text), strings.HasSuffix(path, "_test.go")})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func allowed(pkg string) ([]string, bool) {
	for p := pkg; ; p = p[:strings.LastIndexByte(p, '/')] {
		if a, ok := layers[p]; ok {
			return a, true
		}
		if !strings.Contains(p, "/") {
			return nil, false
		}
	}
}

func matches(rule, pkg string) bool {
	if rule == "*" {
		return true
	}
	if base, ok := strings.CutSuffix(rule, "/..."); ok {
		return pkg == base || strings.HasPrefix(pkg, base+"/")
	}
	return rule == pkg || (strings.HasPrefix(pkg, rule+"/") && strings.HasSuffix(pkg, "pb"))
}

func checkLayers(t *testing.T, f source) {
	rules, ok := allowed(f.pkg)
	if !ok {
		t.Errorf("%s: package %q is in no layer: add it to the table here and in ARCHITECTURE.md", f.path, f.pkg)
		return
	}
	for _, imp := range f.file.Imports {
		path, err := strconv.Unquote(imp.Path.Value)
		if err != nil {
			t.Fatal(err)
		}
		if slices.Contains(pure, f.pkg) && !f.test && slices.Contains(impure, path) {
			t.Errorf("%s: a pure package imports %s", f.path, path)
		}
		if path == "google.golang.org/protobuf/proto" && !f.test && !slices.Contains(rules, "*") {
			t.Errorf("%s: messages are encoded by package pb, not by protobuf's reflection", f.path)
		}
		pkg, ours := strings.CutPrefix(path, module)
		if !ours || f.test {
			continue // a test may use the real thing beside it
		}
		pkg = strings.TrimPrefix(pkg, "/")
		free := slices.Contains(forAll, pkg) && !slices.Contains(forNone, f.pkg)
		own := pkg == f.pkg || strings.HasPrefix(pkg, f.pkg+"/") && f.pkg != "" && strings.HasSuffix(pkg, "pb")
		if !free && !own && !slices.ContainsFunc(rules, func(r string) bool { return matches(r, pkg) }) {
			t.Errorf("%s: %s may not import %s", f.path, f.pkg, pkg)
		}
	}
}

// TestClientsLinkNoNode looks at all that is linked, also by what is imported.
func TestClientsLinkNoNode(t *testing.T) {
	for _, pkg := range []string{".", "./cmd/koinon"} {
		out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "-tags", "client", pkg).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		linked := strings.Fields(string(out))
		if !slices.Contains(linked, module+"/internal/proc") {
			t.Fatalf("%s links no processes: found %q", pkg, linked)
		}
		for _, p := range linked {
			if slices.ContainsFunc(nodeOnly, func(n string) bool { return strings.HasPrefix(p, n) }) {
				t.Errorf("%s links %s, which is for nodes", pkg, p)
			}
		}
	}
}

func checkLength(t *testing.T, fset *token.FileSet, f source) {
	if n := strings.Count(f.text, "\n"); n > fileLinesMax {
		if !longFiles[f.path] {
			t.Errorf("%s has %d lines, more than %d", f.path, n, fileLinesMax)
		}
		delete(longFiles, f.path)
	}
	for _, d := range f.file.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok || fn.Body == nil {
			continue
		}
		n := fset.Position(fn.End()).Line - fset.Position(fn.Pos()).Line + 1
		if n <= functionLinesMax {
			continue
		}
		name := f.path + " " + fn.Name.Name
		if !longFunctions[name] {
			t.Errorf("%s has %d lines, more than %d", name, n, functionLinesMax)
		}
		delete(longFunctions, name)
	}
}

func checkStyle(t *testing.T, fset *token.FileSet, f source) {
	name := f.file.Name.Name
	if slices.Contains([]string{"util", "utils", "common", "base", "helpers"}, strings.TrimSuffix(name, "_test")) {
		t.Errorf("%s: a package is named after what it is about, not %q", f.path, name)
	}
	for _, d := range f.file.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
			t.Errorf("%s: init(): wiring is explicit", f.path)
		}
	}
	ast.Inspect(f.file, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		sel, ok := call.Fun.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if x, ok := sel.X.(*ast.Ident); ok && f.test && x.Name == "t" && strings.HasPrefix(sel.Sel.Name, "Skip") {
			t.Errorf("%s: a skipped test hides a failure", fset.Position(call.Pos()))
		}
		return true
	})
	if slices.Contains(pure, f.pkg) && !f.test {
		ast.Inspect(f.file, func(n ast.Node) bool {
			if g, ok := n.(*ast.GoStmt); ok {
				t.Errorf("%s: a goroutine in a pure package", fset.Position(g.Pos()))
			}
			return true
		})
	}
}
