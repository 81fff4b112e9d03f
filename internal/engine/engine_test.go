package engine

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/koinon/koinon/internal/sys"
)

func TestParse(t *testing.T) {
	for _, tc := range []struct {
		text, print string
		want        URL
	}{
		{"redis://127.0.0.1", "redis://127.0.0.1", URL{Scheme: "redis", Addrs: []string{"127.0.0.1"}}},
		{"redis://:pa%40s%2Fs@127.0.0.1:6379/0\n", "redis://:***@127.0.0.1:6379/0",
			URL{Scheme: "redis", Password: "pa@s/s", Addrs: []string{"127.0.0.1:6379"}, Path: "0"}},
		{"mysql://me:p@ss@[::1]:3306/koinon?ca=%2Fca.pem", "mysql://me:***@[::1]:3306/koinon?ca=/ca.pem",
			URL{Scheme: "mysql", User: "me", Password: "p@ss", Addrs: []string{"[::1]:3306"}, Path: "koinon"}},
		{"redis+cluster://h1:7000,h2,h3:7002", "redis+cluster://h1:7000,h2,h3:7002",
			URL{Scheme: "redis+cluster", Addrs: []string{"h1:7000", "h2", "h3:7002"}}},
		{"mysql://me@/koinon?socket=/run/s.sock", "mysql://me@/koinon?socket=/run/s.sock", URL{Scheme: "mysql", User: "me", Path: "koinon"}},
		{"REDIS+sentinel://h/m/1?sentinel-password=hush", "redis+sentinel://h/m/1?sentinel-password=***",
			URL{Scheme: "redis+sentinel", Addrs: []string{"h"}, Path: "m/1"}},
	} {
		u, err := Parse(tc.text)
		if err != nil {
			t.Errorf("%s: %v", tc.text, err)
			continue
		}
		if u.Scheme != tc.want.Scheme || u.User != tc.want.User || u.Password != tc.want.Password || !slices.Equal(u.Addrs, tc.want.Addrs) || u.Path != tc.want.Path {
			t.Errorf("%s became %+v", tc.text, *u)
		}
		if u.String() != tc.print {
			t.Errorf("%s prints as %s", tc.text, u)
		}
	}
	u, err := Parse("redis+cluster://h1:7000,[::1]")
	if err != nil || !slices.Equal(u.HostPorts(6379), []string{"h1:7000", "[::1]:6379"}) {
		t.Errorf("host and port: %v, %v", u, err)
	}
}

// The errors say what is wrong and never quote the password.
func TestParseRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"hunter2":                        "scheme://",
		"redis://":                       "no host",
		"redis://:hunter2@":              "no host",
		"redis://:hunter2@h:0":           "host:port",
		"redis://:hunter2@h:x/0":         "host:port",
		"redis://:hunter2@h,,g":          "host:port",
		"redis://:hunter2@a:b:c":         "host:port",
		"redis://:hunter2/x@h:1":         "%2F",
		"redis://:hunter2#x@h:1":         "%23",
		"redis://:hunter2%zz@h:1":        "%25",
		"redis://h?a=1&a=2":              "2 times",
		"mysql://u:hunter2@h/db?a=%zz":   "name=value",
		"mysql://:hunter2@h?socket=/x":   "not both",
		"mysql://u:hunter2@h:1/%zzhello": "path",
	} {
		_, err := Parse(text)
		if !sys.Is(err, sys.Invalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
		if text != "hunter2" && err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the error tells the password: %v", err)
		}
	}
	u, err := Parse("redis://h?db=1&lb=2")
	if err != nil || u.Check("db", "lb") != nil {
		t.Fatalf("%v, %v", u, err)
	}
	if err := u.Check("db"); !sys.Is(err, sys.Invalid) || !strings.Contains(err.Error(), `"lb"`) {
		t.Errorf("an unknown parameter: %v", err)
	}
}

// No way of printing tells a password.
func TestSecretsDoNotPrint(t *testing.T) {
	const text = "redis://u:hunter2@h:1/0?sentinel-password=hunter2"
	u, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		fmt.Fprintf(&b, verb+"\n", u.Password)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		fmt.Fprintf(&b, verb+verb+verb+"\n", u, Ref(text), struct{ R Ref }{Ref(text)})
	}

	for _, malformed := range []string{
		"user:hunter2@tcp(127.0.0.1:3307)/db", "mysql:/user:hunter2@h/db", "mysql:user:hunter2@h/db", ":hunter2@127.0.0.1:6380/0",
		"redis:/:hunter2@h:1/0", "redis:///hunter2@h:1/0", "hunter2@h", "mysql://user/x:hunter2@h/db", "mysql://user:hun ter2 hunter2@h/db",
		"redis://hunter2@h:1/0", "REDISS+cluster://hunter2@h:1,g", "redis+sentinel://hunter2@h/m/x", "mysql://u:x@a/hunter2@h/db",
		"mysql://u:x@a?hunter2@h/db", "user:hunter2@h://x/y",
	} {
		u, err := Parse(malformed)
		if err == nil {
			_, err = fmt.Fprintf(&b, "%v %+v %#v\n", u, u, u)
		}
		fmt.Fprintf(&b, "%v %v %#v %s\n", err, Ref(malformed), Ref(malformed), cover(malformed, urlSpans(malformed)))
	}
	for _, told := range []string{
		`"mysql:/user:hunter2@h/db" is too much`, `"redis://hunter2@h:1/0" is too much`, "dial user:hunter2@tcp(h:1): refused",
		"dial redis:/:hunter2@h: refused",
	} {
		fmt.Fprintln(&b, Redact(told))
	}
	slog.New(slog.NewJSONHandler(&b, nil)).Info("x", "url", u, "ref", Ref(text), "secret", u.Password)
	slog.New(slog.NewTextHandler(&b, nil)).Info("x", "url", u, "ref", Ref(text), "secret", u.Password)
	out := b.String()
	if strings.Contains(out, "hunter2") || strings.Contains(out, fmt.Sprintf("%x", "hunter2")) {
		t.Errorf("printed:\n%s", out)
	}
	for in, want := range map[string]string{
		"dial redis://:a@b/c@h:1: refused":  "dial redis://:***@h:1: refused",
		"a b":                               "a b",
		"http://h/x":                        "http://h/x",
		"mysql://me@h/x: refused":           "mysql://me@h/x: refused",
		"mysql: root@h has no right":        "mysql: root@h has no right",
		"as in redis://:password@h":         "as in redis://:password@h",
		"redis://x:y@h?sentinel-password=z": "redis://x:***@h?sentinel-password=***",
	} {
		if got := Redact(in); got != want {
			t.Errorf("%q became %q", in, got)
		}
		if again := Redact(Redact(in)); again != want {
			t.Errorf("%q became %q at the second time", in, again)
		}
	}
	for _, r := range []Ref{"@/etc/a@b/url", "env:KOINON_META", "mysql://me@h/x", "redis://h:1/0"} {
		if r.String() != string(r) {
			t.Errorf("%s became %s", string(r), r)
		}
	}
}

func TestRef(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "url")
	if err := os.WriteFile(path, []byte("redis://:x@h:1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("KOINON_TEST_URL", "redis://:x@h:1")
	for _, r := range []Ref{"redis://:x@h:1", "env:KOINON_TEST_URL", Ref("@" + path), Ref("@url").In(dir)} {
		u, err := r.Load()
		if err != nil || u.Password.Reveal() != "x" {
			t.Errorf("%v: %v, %v", r, u, err)
		}
	}
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Ref("@" + empty).Load(); err == nil || !strings.Contains(err.Error(), empty) {
		t.Errorf("of an empty file: %v", err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	for r, want := range map[Ref]string{Ref("@" + path): "chmod 600", "@/no/such": "/no/such", "env:KOINON_NOT_SET": "KOINON_NOT_SET"} {
		if _, err := r.Load(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", r, err, want)
		}
	}
}

func TestTLS(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "ca")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for params, want := range map[string]string{"server-name=db": "", "ca=/no/such": "ca:", "ca=" + empty: "no certificate", "cert=/no": "cert and key"} {
		u, err := Parse("rediss://h?" + params)
		if err != nil {
			t.Fatal(err)
		}
		c, err := u.TLS()
		if want == "" && (err != nil || c.ServerName != "db") || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, %v", params, c, err)
		}
	}
}

// TestHideArgs looks at a process's own command line, as ps does.
func TestHideArgs(t *testing.T) {
	if os.Getenv("KOINON_HIDE_ARGS") != "" {
		os.Args = HideArgs(os.Args, "meta", "to")
		shown, err := os.ReadFile("/proc/self/cmdline")
		if err != nil {
			t.Fatal(err)
		}
		fmt.Printf("kept %s\nshown %s\n", os.Args[len(os.Args)-1], bytes.ReplaceAll(shown, []byte{0}, []byte{' '}))
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestHideArgs$", "--", "--to", "me:hunter2@h/db", "a@b", "--meta=me:hunter2@h", "--blocks=redis://u:hunter2@h:1/0?sentinel-password=abc")
	cmd.Env = append(os.Environ(), "KOINON_HIDE_ARGS=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"kept --blocks=redis://u:hunter2@h:1/0?sentinel-password=abc\n", "--to **********@h/db a@b --meta=**********@h --blocks=redis://u:*******@h:1/0?sentinel-password=***"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
}

func TestSame(t *testing.T) {
	const url = "redis://:secret@127.0.0.1:6379/0"
	name := filepath.Join(t.TempDir(), "url")
	if err := os.WriteFile(name, []byte(url+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("KOINON_TEST_URL", url)
	same := []Ref{url, Ref("@" + name), "env:KOINON_TEST_URL"}
	for _, a := range same {
		for _, b := range same {
			if !a.Same(b) {
				t.Errorf("%q and %q are said to differ", string(a), string(b))
			}
		}
		for _, b := range []Ref{"", url + "0", "@" + "/nowhere", "env:KOINON_TEST_NONE"} {
			if a.Same(b) || b.Same(a) {
				t.Errorf("%q and %q are said to be the same", string(a), string(b))
			}
		}
	}
}
