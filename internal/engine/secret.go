package engine

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/koinon/koinon/internal/sys"
)

// Ref is an engine as it stands on a command line or in a configuration: a
// URL, @FILE or env:NAME. It prints without the password that a URL may hold, and
// without all that may be one where it is no URL.
type Ref string

// String returns r without a password.
func (r Ref) String() string { return cover(string(r), r.spans()) }

// GoString is String, for %#v.
func (r Ref) GoString() string { return fmt.Sprintf("%q", r.String()) }

// LogValue implements slog.LogValuer.
func (r Ref) LogValue() slog.Value { return slog.StringValue(r.String()) }

// In returns r with the path of its file taken from dir where it is relative.
func (r Ref) In(dir string) Ref {
	if name, ok := strings.CutPrefix(string(r), "@"); ok && !filepath.IsAbs(name) {
		return Ref("@" + filepath.Join(dir, name))
	}
	return r
}

// Same reports whether r and o lead to one URL, as far as they can be read.
func (r Ref) Same(o Ref) bool {
	if r == o {
		return true
	}
	text, err := r.Text()
	other, oerr := o.Text()
	return err == nil && oerr == nil && text == other
}

// textMax bounds what is read as a URL, in bytes.
const textMax = 16 << 10

// Text returns the URL that r leads to, with its password.
func (r Ref) Text() (string, error) {
	if name, ok := strings.CutPrefix(string(r), "env:"); ok {
		text := os.Getenv(name)
		if text == "" {
			return "", sys.E(op, sys.NotExist, sys.Subject(Redact(name)), "the environment variable is not set")
		}
		return urlOf(name, text)
	}
	name, ok := strings.CutPrefix(string(r), "@")
	if !ok {
		return string(r), nil
	}
	f, err := os.Open(name)
	if err != nil {
		return "", sys.E(op, sys.NotExist, err)
	}
	defer func() { _ = f.Close() }() // it was only read
	if info, err := f.Stat(); err != nil {
		return "", sys.E(op, sys.Subject(name), err)
	} else if info.Mode().IsRegular() && info.Mode().Perm()&0o077 != 0 {
		return "", sys.E(op, sys.Access, sys.Subject(name),
			fmt.Sprintf("others may read the file with the password: chmod 600 %s", name))
	}
	text, err := io.ReadAll(io.LimitReader(f, textMax))
	if err != nil {
		return "", sys.E(op, sys.Subject(name), err)
	}
	return urlOf(name, string(text))
}

// urlOf returns the URL that a file or a variable of that name holds, without the
// white space around it. An error tells the name.
func urlOf(name, text string) (string, error) {
	text = strings.TrimSpace(text)
	if _, err := Parse(text); err != nil {
		return "", sys.E(op, sys.Invalid, sys.Subject(name), err)
	}
	return text, nil
}

// Load returns the URL that r leads to, taken apart.
func (r Ref) Load() (*URL, error) {
	text, err := r.Text()
	if err != nil {
		return nil, err
	}
	return Parse(text)
}

// TLS returns how to speak TLS to the engine: ca, cert, key and server-name
// of its parameters.
func (u *URL) TLS() (*tls.Config, error) {
	bad := func(kind sys.Kind, format string, args ...any) (*tls.Config, error) {
		return nil, sys.E(op, kind, sys.Subject(u.String()), fmt.Sprintf(format, args...))
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: u.Param("server-name")}
	if name := u.Param("ca"); name != "" {
		pem, err := os.ReadFile(name)
		if err != nil {
			return bad(sys.NotExist, "ca: %v", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return bad(sys.Invalid, "ca: %s holds no certificate in PEM", name)
		}
	}
	if cert, key := u.Param("cert"), u.Param("key"); cert != "" || key != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return bad(sys.Invalid, "cert and key: %v", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}
