package main

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestCommitted holds the files of the client's program against those that they
// are made of.
func TestCommitted(t *testing.T) {
	n := 0
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if stem, ok := strings.CutSuffix(path, ".proto"); err == nil && ok {
			n++
			compare(t, stem)
		}
		return err
	})
	if err != nil || n < 9 {
		t.Errorf("found %d .proto files, %v", n, err)
	}
}

func compare(t *testing.T, stem string) {
	types, constrained := bytes.CutPrefix(read(t, stem+".pb.go"), []byte(unlessClient))
	plain, err := without(stem+".pb.go", types)
	if err != nil || !constrained {
		t.Errorf("%s.pb.go: constrained %v, %v", stem, constrained, err)
	}
	if !bytes.Equal(read(t, stem+"_client.pb.go"), append([]byte(forClient), plain...)) {
		t.Errorf("%s_client.pb.go is not what is made of %s.pb.go: make generate", stem, stem)
	}
	if bytes.Contains(plain, []byte("google.golang.org/")) {
		t.Errorf("%s_client.pb.go needs protobuf", stem)
	}
	codecs := read(t, stem+"_vtproto.pb.go")
	if again, err := without(stem+"_vtproto.pb.go", codecs); err != nil || !bytes.Equal(again, codecs) {
		t.Errorf("%s_vtproto.pb.go is not as it is made: make generate; %v", stem, err)
	}
}

func read(t *testing.T, path string) []byte {
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// made is what protoc-gen-go makes, in short.
const made = `package p

import (
	protoimpl "google.golang.org/protobuf/runtime/protoimpl"
	sync "sync"
)

// E is an enum.
type E int32

var E_name = map[int32]string{0: "A"}

// String goes by a descriptor.
func (x E) String() string { return protoimpl.X.EnumStringOf(x.Descriptor(), x) }

// M is a message.
type M struct {
	state protoimpl.MessageState
	// F is a field.
	F             int32
	unknownFields protoimpl.UnknownFields
	sizeCache     protoimpl.SizeCache
}

func (x *M) Reset() {
	*x = M{}
	ms := protoimpl.X.MessageStateOf(protoimpl.Pointer(x))
	ms.StoreMessageInfo(mi)
}

func (x *M) String() string { return protoimpl.X.MessageStringOf(x) }

var file_p_once sync.Once

func init() { file_p_init() }
`

const wanted = `package p

import (
	strconv "strconv"
)

// E is an enum.
type E int32

var E_name = map[int32]string{0: "A"}

// String goes by a descriptor.
func (x E) String() string {
	if s, ok := E_name[int32(x)]; ok {
		return s
	}
	return strconv.Itoa(int(x))
}

// M is a message.
type M struct {

	// F is a field.
	F             int32
	unknownFields []byte
}

func (x *M) Reset() {
	*x = M{}
}
`

func TestWithout(t *testing.T) {
	got, err := without("p.pb.go", []byte(made))
	if err != nil || strings.TrimSpace(string(got)) != strings.TrimSpace(wanted) {
		t.Errorf("%v\n%s", err, got)
	}
}

// TestUnknown gives it what it cannot do without protobuf.
func TestUnknown(t *testing.T) {
	weak := strings.Replace(made, "F             int32", "F protoimpl.WeakFields", 1)
	for what, src := range map[string]string{"a field of protobuf": weak, "no imports": "package p\n", "no Go": "package"} {
		if got, err := without("p.pb.go", []byte(src)); err == nil {
			t.Errorf("%s: an error expected, found\n%s", what, got)
		}
	}
	for _, name := range []string{"p.proto", "p_vtproto.pb.go", "p_client.pb.go", "none.pb.go"} {
		if err := finish(filepath.Join(t.TempDir(), name)); err == nil {
			t.Errorf("%s: an error expected", name)
		}
	}
}
