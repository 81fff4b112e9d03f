package config

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/koinon/koinon/internal/sys"
)

// nodeTOML is a whole, valid node file. Tests change a line of it.
const nodeTOML = `
cluster = "prod"
id = 2
dir = "data"
listen = "0.0.0.0:7400"
zone = "rack-a"
retention = "90m"

[tls]
ca = "ca.crt"
cert = "/etc/koinon/node.crt"
key = "node.key"

[log]
level = "debug"
file = "log"

[limits]
state_cache = "32MiB"

[[voters]]
id = 1
addr = "10.0.0.1:7400"

[[voters]]
id = 2
addr = "10.0.0.2:7400"
`

const clientTOML = `
cluster = "prod"
nodes = ["10.0.0.1:7400", "10.0.0.2:7400"]
mount = "mnt"

[tls]
ca = "ca.crt"
cert = "client.crt"
key = "client.key"
`

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestLoadNode(t *testing.T) {
	path := write(t, nodeTOML)
	dir := filepath.Dir(path)
	got, err := LoadNode(path)
	if err != nil {
		t.Fatal(err)
	}
	want := &Node{
		Cluster: "prod", ID: 2, Dir: filepath.Join(dir, "data"), Listen: "0.0.0.0:7400",
		Advertise: "10.0.0.2:7400", Replicas: 3, Zone: "rack-a", Retention: Duration(90 * time.Minute),
		TLS:    TLS{CA: filepath.Join(dir, "ca.crt"), Cert: "/etc/koinon/node.crt", Key: filepath.Join(dir, "node.key")},
		Log:    Log{Level: "debug", File: filepath.Join(dir, "log")},
		Limits: Limits{StateCache: 32 * MiB, MinFree: DefaultMinFree},
		Voters: []Voter{{1, "10.0.0.1:7400"}, {2, "10.0.0.2:7400"}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// TestProc: what a node gives to processes, read and kept.
// Words are what their messages say.
func TestWords(t *testing.T) {
	long := strings.Repeat("x", 63)
	for s, want := range map[string]bool{"a": true, "Z9": true, "0-._": true, long: true, long + "y": true, long + "yz": false, "": false,
		"-a": false, ".a": false, "a b": false, "a/b": false, "\u00e4": false, "a\n": false} {
		if got := clusterName(s); got != want {
			t.Errorf("cluster %q: %v", s, got)
		}
	}
	for s, want := range map[string]bool{"r/7": true, "a_b": true, long: true, long + "y": false, "/r": false, "": false, "a:b": false} {
		if got := labelWord(s); got != want {
			t.Errorf("label %q: %v", s, got)
		}
	}
}

func TestProc(t *testing.T) {
	path := write(t, nodeTOML+"\n[proc]\ncpus = 1.5\nmemory = \"2GiB\"\nlabels = { gpu = \"a100\", rack = \"r/7\" }\n")
	want := Proc{CPUs: 1.5, Memory: 2 * GiB, Labels: map[string]string{"gpu": "a100", "rack": "r/7"}}
	for range 2 {
		got, err := LoadNode(path)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got.Proc, want) {
			t.Errorf("got  %+v\nwant %+v", got.Proc, want)
		}
		if err := got.Save(path); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLoadClient(t *testing.T) {
	path := write(t, clientTOML)
	got, err := LoadClient(path)
	if err != nil {
		t.Fatal(err)
	}
	if got.Mount != filepath.Join(filepath.Dir(path), "mnt") || len(got.Nodes) != 2 || got.Timeout != DefaultTimeout {
		t.Errorf("got %+v", got)
	}
}

// A link to a file, as the user's current configuration is, counts paths from
// the file and not from the link.
func TestLoadThroughLink(t *testing.T) {
	path := write(t, clientTOML)
	link := filepath.Join(t.TempDir(), "current.toml")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	got, err := LoadClient(link)
	if err != nil {
		t.Fatal(err)
	}
	if want := filepath.Join(filepath.Dir(path), "ca.crt"); got.TLS.CA != want {
		t.Errorf("ca is %s, want %s", got.TLS.CA, want)
	}
}

func TestRoundTrip(t *testing.T) {
	for name, text := range map[string]string{"whole": nodeTOML, "least": strings.NewReplacer(
		`zone = "rack-a"`, "", `retention = "90m"`, "").Replace(nodeTOML)} {
		t.Run(name, func(t *testing.T) {
			path := write(t, text)
			first, err := LoadNode(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := first.Save(path); err != nil {
				t.Fatal(err)
			}
			again, err := LoadNode(path)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(first, again) {
				t.Errorf("saved  %+v\nloaded %+v", first, again)
			}
		})
	}
	t.Run("client", func(t *testing.T) {
		path := write(t, clientTOML)
		first, err := LoadClient(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := first.Save(path); err != nil {
			t.Fatal(err)
		}
		again, err := LoadClient(path)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(first, again) {
			t.Errorf("saved  %+v\nloaded %+v", first, again)
		}
	})
}

// The file holds the way to a secret, and a failed save leaves no trace.
func TestSaveIsPrivateAndWhole(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "client.toml")
	c := &Client{Cluster: "prod", Nodes: []string{"h:1"}}
	if err := c.Save(path); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode is %v, want 0600", info.Mode().Perm())
	}
	if err := os.Mkdir(filepath.Join(dir, "taken"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := c.Save(filepath.Join(dir, "taken")); err == nil {
		t.Error("saving over a directory succeeded")
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 2 {
		t.Errorf("a failed save left something behind: %v", entries)
	}
}

func TestNodeErrorsSayWhatToDo(t *testing.T) {
	tests := []struct {
		name, old, new string
		want           []string
	}{
		{"misspelt key", `listen =`, `lisen =`, []string{`"lisen"`, `did you mean "listen"`}},
		{"misspelt key in a table", `level =`, `lvl =`, []string{`"log.lvl"`, `did you mean "log.level"`}},
		{"misspelt key in an array", `addr = "10.0.0.1:7400"`, `adr = "10.0.0.1:7400"`, []string{`"voters.adr"`, `"voters.addr"`}},
		{"key outside its table", `cluster = "prod"`, "cluster = \"prod\"\nlevel = \"info\"", []string{`"level"`, `did you mean "log.level"`}},
		{"misspelt table", `[limits]`, `[limit]`, []string{`"limit"`, `did you mean "limits"`}},
		{"no TOML", `id = 2`, `id = `, []string{"line 3"}},
		{"wrong type", `id = 2`, `id = "two"`, []string{`"id"`}},
		{"negative id", `id = 2`, `id = -2`, []string{"-2"}},
		{"no cluster", `cluster = "prod"`, ``, []string{`"cluster" is missing`}},
		{"bad cluster", `"prod"`, `"a/b"`, []string{`"cluster"`, "letters"}},
		{"no id", `id = 2`, ``, []string{`"id" is missing`, "1 or more"}},
		{"no dir", `dir = "data"`, ``, []string{`"dir" is missing`, "directory"}},
		{"no listen", `listen = "0.0.0.0:7400"`, ``, []string{`"listen" is missing`, "host:port"}},
		{"listen without port", `"0.0.0.0:7400"`, `"0.0.0.0"`, []string{`"listen"`, "host:port"}},
		{"port 0", `"0.0.0.0:7400"`, `"0.0.0.0:0"`, []string{`"listen"`, "1 to 65535"}},
		{"port too high", `"0.0.0.0:7400"`, `"0.0.0.0:65536"`, []string{"1 to 65535"}},
		{"voter at any address", `"10.0.0.1:7400"`, `"0.0.0.0:7400"`, []string{`"voters[0].addr"`, "nobody can connect"}},
		{"voter twice", "id = 1", "id = 2", []string{`"voters[1].id"`, "its own"}},
		{"address twice", "10.0.0.1:7400", "10.0.0.2:7400", []string{`"voters[1].addr"`, "its own"}},
		{"voter without id", "id = 1", "", []string{`"voters[0].id" is missing`}},
		{"not a voter", "id = 2\ndir", "id = 7\ndir", []string{`"voters"`, "id 7"}},
		{"two truths", `zone = "rack-a"`, `advertise = "10.0.0.9:7400"`, []string{`"advertise"`, "10.0.0.2:7400"}},
		{"metrics without a port", `zone = "rack-a"`, `metrics = "localhost"`, []string{`"metrics"`, "host:port"}},
		{"voters and seeds", `zone = "rack-a"`, `seeds = ["10.0.0.1:7400"]`, []string{`"voters" and "seeds"`}},
		{"too many replicas", `zone = "rack-a"`, `replicas = 10`, []string{`"replicas" is 10`, "1 to 9"}},
		{"no duration", `"90m"`, `"90"`, []string{"90", `"10m"`}},
		{"a client's file", nodeTOML, clientTOML, []string{"configuration of a client", "give a node's"}},
		{"negative duration", `"90m"`, `"-1m"`, []string{`"retention"`, "give 10s or more"}},
		{"short retention", `"90m"`, `"9s"`, []string{`"retention"`, "give 10s or more"}},
		{"no size", `"32MiB"`, `"32 apples"`, []string{"apples", `"64M"`}},
		{"no certificate", `cert = "/etc/koinon/node.crt"`, ``, []string{`"tls.cert" is missing`, "certificate"}},
		{"negative CPUs", `[limits]`, "[proc]\ncpus = -1.0\n[limits]", []string{`"proc.cpus"`, "like 1.5"}},
		{"next to no CPU", `[limits]`, "[proc]\ncpus = 0.0001\n[limits]", []string{`"proc.cpus"`, "off = true"}},
		{"bad label", `[limits]`, "[proc]\nlabels = { gpu = \"a 100\" }\n[limits]", []string{`"proc.labels"`, `"gpu"`, "letters"}},
		{"misspelt label table", `[limits]`, "[proc]\nlabel = { gpu = \"a100\" }\n[limits]", []string{`"proc.label"`, `did you mean "proc.labels"`}},
		{"log level", `"debug"`, `"loud"`, []string{`"log.level"`, "debug, info, warn or error"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			text := strings.Replace(nodeTOML, test.old, test.new, 1)
			if text == nodeTOML {
				t.Fatalf("%q is not in the file", test.old)
			}
			path := write(t, text)
			_, err := LoadNode(path)
			if err == nil {
				t.Fatal("no error")
			}
			if !sys.Is(err, sys.Invalid) {
				t.Errorf("kind is %v, want %v", sys.KindOf(err), sys.Invalid)
			}
			for _, want := range append(test.want, path) {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not hold %q", err, want)
				}
			}
		})
	}
}

func TestClientErrorsSayWhatToDo(t *testing.T) {
	tests := []struct{ name, old, new, want string }{
		{"no nodes", `nodes = ["10.0.0.1:7400", "10.0.0.2:7400"]`, ``, `"nodes" is missing`},
		{"bad node", `"10.0.0.2:7400"`, `"10.0.0.2"`, `"nodes[1]"`},
		{"negative timeout", `mount = "mnt"`, `timeout = "-1s"`, `"timeout"`},
		{"a node's file", clientTOML, nodeTOML, "configuration of a node"},
		{"the CA's key", `[tls]`, "[tls]\nca_key = \"ca.key\"", `"tls.ca_key" is for nodes`},
		{"unknown", `mount = "mnt"`, `mont = "mnt"`, `did you mean "mount"`},
		{"another file", clientTOML, "root:x:0:0::/root:/bin/sh\n", ": this is no configuration of koinon: line 1: expected"},
		{"no string", "nodes = [\"10.0.0.1:7400\", \"10.0.0.2:7400\"]\n", "nodes = \"a\n", `: line 3 (last key "nodes"): strings`},
		{"no duration", `mount = "mnt"`, `timeout = "soon"`, `: line 4 (last key "timeout"): "soon" is not a duration`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := LoadClient(write(t, strings.Replace(clientTOML, test.old, test.new, 1)))
			if !sys.Is(err, sys.Invalid) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v does not hold %s", err, test.want)
			}
		})
	}
}

func TestMissingFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none.toml")
	_, err := LoadNode(path)
	if !sys.Is(err, sys.NotExist) || strings.Count(err.Error(), path) != 1 {
		t.Errorf("%v is not a NotExist that names the file once", err)
	}
}

func TestSizeAndDuration(t *testing.T) {
	for text, want := range map[string]Size{"0B": 0, "512KiB": 512 << 10, "1 GiB": 1 << 30, "1025B": 1025, "8388607TiB": 8388607 << 40,
		"1.5GiB": 3 << 29, "0.25 MiB": 256 << 10, "17.6GiB": 18_897_856_102,
		"4G": 4 << 30, "512m": 512 << 20, "1.5 k": 1536, "2T": 2 << 40} {
		var s Size
		if err := s.UnmarshalText([]byte(text)); err != nil || s != want {
			t.Errorf("%q is %d, %v, want %d", text, s, err, want)
		}
		var again Size
		if err := again.UnmarshalText([]byte(s.String())); err != nil || again != s {
			t.Errorf("%v reads back as %v, %v", s, again, err)
		}
	}
	for _, text := range []string{"", "B", "12", "-1B", "8388608TiB", "1.5.5GiB", ".GiB", "1e3MiB", "infB", "-1.5GiB", "8388608.5TiB", "99999999999999999999B", "G", "4GB", "4Gi", "1e3M", "4GM"} {
		var s Size
		if err := s.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is taken for %v", text, s)
		}
	}
	for d, want := range map[time.Duration]string{10 * time.Minute: "10m", time.Hour: "1h", 90 * time.Second: "1m30s", 0: "0s", 100 * time.Hour: "100h", 20 * time.Second: "20s"} {
		if got := Duration(d).String(); got != want {
			t.Errorf("%v is written %q, want %q", d, got, want)
		}
	}
}

// TestJoinedNode: a node that has joined has seeds in place of voters.
func TestJoinedNode(t *testing.T) {
	path := filepath.Join(t.TempDir(), "node.toml")
	n := &Node{Cluster: "lab", ID: 4, Dir: "data", Listen: ":7400", Advertise: "10.0.0.4:7400", Seeds: []string{"10.0.0.1:7400"},
		TLS: TLS{CA: "ca.crt", Cert: "node.crt", Key: "node.key", CAKey: "ca/ca.key"}}
	if err := n.Save(path); err != nil {
		t.Fatal(err)
	}
	got, err := LoadNode(path)
	if err != nil {
		t.Fatal(err)
	}
	if !got.Joined() || got.Advertise != n.Advertise || got.TLS.CAKey != filepath.Join(filepath.Dir(path), "ca/ca.key") {
		t.Errorf("read as %+v", got)
	}
	n.Seeds[0] = ":7400"
	if err := n.Save(path); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadNode(path); err == nil || !strings.Contains(err.Error(), `"seeds[0]"`) {
		t.Errorf("a seed without a host: %v", err)
	}
}
