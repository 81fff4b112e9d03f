// Command plain finishes what protoc-gen-go and protoc-gen-go-vtproto made
// (make generate). For the client's program, built with the tag client, it makes the
// types once more without descriptors and reflection, which every process prepares
// before it begins; and it takes from the codecs what needs those.
//
//	plain FILE.pb.go...
//
// Beside each FILE.pb.go it reads and rewrites FILE_vtproto.pb.go and writes
// FILE_client.pb.go. A declaration that it does not know how to do without is an
// error.
package main

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"os"
	"regexp"
	"slices"
	"strings"
)

func main() {
	for _, path := range os.Args[1:] {
		if err := finish(path); err != nil {
			fmt.Fprintln(os.Stderr, "plain:", err)
			os.Exit(1)
		}
	}
}

// unlessClient and forClient are the constraints of the two.
const (
	unlessClient = "//go:build !client\n\n"
	forClient    = "//go:build client\n\n"
)

// finish does all for one file of protoc-gen-go.
func finish(path string) error {
	stem, ok := strings.CutSuffix(path, ".pb.go")
	if !ok || strings.HasSuffix(stem, "_vtproto") || strings.HasSuffix(stem, "_client") {
		return fmt.Errorf("%s: a file that protoc-gen-go made is expected", path)
	}
	types, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	types = bytes.TrimPrefix(types, []byte(unlessClient)) // of an earlier run
	codecs, err := os.ReadFile(stem + "_vtproto.pb.go")
	if err != nil {
		return err
	}
	plain, err := without(path, types)
	if err != nil {
		return err
	}
	if codecs, err = without(stem+"_vtproto.pb.go", codecs); err != nil {
		return err
	}
	for _, f := range []struct {
		path string
		data []byte
	}{
		{path, append([]byte(unlessClient), types...)},
		{stem + "_client.pb.go", append([]byte(forClient), plain...)},
		{stem + "_vtproto.pb.go", codecs},
	} {
		if err := os.WriteFile(f.path, f.data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// edit replaces src[from:to].
type edit struct {
	from, to int
	by       string
}

// source is a file that is taken apart.
type source struct {
	path  string
	src   []byte
	fset  *token.FileSet
	edits []edit
}

// without returns a made file without what needs protobuf's packages.
func without(path string, src []byte) ([]byte, error) {
	s := &source{path: path, src: src, fset: token.NewFileSet()}
	file, err := parser.ParseFile(s.fset, path, src, parser.ParseComments)
	if err != nil {
		return nil, err
	}
	for _, d := range file.Decls {
		switch d := d.(type) {
		case *ast.GenDecl:
			s.genDecl(d)
		case *ast.FuncDecl:
			s.funcDecl(d)
		}
	}
	out := s.apply()
	if out, err = s.imports(out); err != nil {
		return nil, err
	}
	if at := bytes.Index(out, []byte("proto"+"impl.")); at >= 0 {
		return nil, fmt.Errorf("%s: cannot do without %q", path, out[at:min(at+60, len(out))])
	}
	return format.Source(out)
}

func (s *source) offset(p token.Pos) int { return s.fset.Position(p).Offset }

// cut removes a node with its comment.
func (s *source) cut(n ast.Node, doc *ast.CommentGroup) {
	from := n.Pos()
	if doc != nil {
		from = doc.Pos()
	}
	s.edits = append(s.edits, edit{s.offset(from), s.offset(n.End()), ""})
}

func (s *source) text(n ast.Node) string { return string(s.src[s.offset(n.Pos()):s.offset(n.End())]) }

func (s *source) genDecl(d *ast.GenDecl) {
	switch d.Tok {
	case token.CONST, token.VAR:
		v := d.Specs[0].(*ast.ValueSpec)
		if name := v.Names[0].Name; strings.HasPrefix(strings.ToLower(name), "file_") || strings.Contains(s.text(d), ".EnforceVersion(") {
			s.cut(d, d.Doc)
		}
	case token.TYPE:
		for _, spec := range d.Specs {
			if t, ok := spec.(*ast.TypeSpec).Type.(*ast.StructType); ok {
				s.structType(t)
			}
		}
	}
}

func (s *source) structType(t *ast.StructType) {
	for _, f := range t.Fields.List {
		switch s.text(f.Type) {
		case "protoimpl.MessageState", "protoimpl.SizeCache":
			s.cut(f, f.Doc)
		case "protoimpl.UnknownFields":
			s.edits = append(s.edits, edit{s.offset(f.Type.Pos()), s.offset(f.Type.End()), "[]byte"})
		}
	}
}

// ofReflection are the methods that go.
var ofReflection = []string{"ProtoReflect", "ProtoMessage", "Descriptor", "EnumDescriptor", "Type", "Number", "CloneMessageVT"}

func (s *source) funcDecl(f *ast.FuncDecl) {
	name := f.Name.Name
	if f.Recv == nil {
		if name == "init" || strings.HasPrefix(name, "file_") {
			s.cut(f, f.Doc)
		}
		return
	}
	recv := f.Recv.List[0].Type
	star, message := recv.(*ast.StarExpr)
	body := func(by string) {
		s.edits = append(s.edits, edit{s.offset(f.Body.Pos()), s.offset(f.Body.End()), by})
	}
	switch {
	case slices.Contains(ofReflection, name), name == "String" && message:
		s.cut(f, f.Doc)
	case name == "Reset":
		body(fmt.Sprintf("{\n\t*x = %s{}\n}", s.text(star.X)))
	case name == "String":
		body(fmt.Sprintf("{\n\tif s, ok := %s_name[int32(x)]; ok {\n\t\treturn s\n\t}\n\treturn strconv.Itoa(int(x))\n}", s.text(recv)))
	}
}

// apply makes the edits.
func (s *source) apply() []byte {
	slices.SortFunc(s.edits, func(a, b edit) int { return a.from - b.from })
	var out []byte
	at := 0
	for _, e := range s.edits {
		out = append(append(out, s.src[at:e.from]...), e.by...)
		at = e.to
	}
	return append(out, s.src[at:]...)
}

var importBlock = regexp.MustCompile(`(?s)import \(.*?\n\)\n`)

// imports leaves the imports that are still used.
func (s *source) imports(src []byte) ([]byte, error) {
	at := importBlock.FindIndex(src)
	if at == nil {
		return nil, fmt.Errorf("%s: an import block is expected", s.path)
	}
	rest := src[at[1]:]
	lines := strings.Split(string(src[at[0]:at[1]]), "\n")
	kept := slices.DeleteFunc(lines, func(l string) bool {
		name, path, ok := strings.Cut(strings.TrimSpace(l), " ")
		return ok && strings.HasPrefix(path, `"`) && !bytes.Contains(rest, []byte(name+"."))
	})
	if bytes.Contains(rest, []byte("strconv.")) {
		kept = slices.Insert(kept, 1, "\tstrconv \"strconv\"")
	}
	block := strings.Join(kept, "\n")
	if !strings.Contains(block, `"`) {
		block = ""
	}
	return slices.Concat(src[:at[0]], []byte(block), rest), nil
}
