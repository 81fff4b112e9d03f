package config

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/koinon/koinon/internal/atomicfile"
	"github.com/koinon/koinon/internal/sys"
)

const (
	opRead  = sys.Op("read config")
	opWrite = sys.Op("write config")
)

// LoadNode reads a node's file, makes its paths absolute, lets override change
// what was read, fills in the defaults and validates. Errors name the file,
// the key and what to do.
func LoadNode(path string, override ...func(*Node) error) (*Node, error) {
	n := &Node{}
	dir, err := decodeFile(path, n)
	if err != nil {
		return nil, err
	}
	absolute(dir, &n.Dir, &n.TLS.CA, &n.TLS.Cert, &n.TLS.Key, &n.TLS.CAKey, &n.Log.File)
	n.Meta.URL, n.Blocks.URL = n.Meta.URL.In(dir), n.Blocks.URL.In(dir)
	for _, f := range override {
		if err := f(n); err != nil {
			return nil, err
		}
	}
	n.SetDefaults()
	if err := n.Validate(); err != nil {
		return nil, sys.E(opRead, sys.Subject(path), err)
	}
	return n, nil
}

// LoadClient reads a client's file as LoadNode reads a node's.
func LoadClient(path string) (*Client, error) {
	c := &Client{}
	dir, err := decodeFile(path, c)
	if sys.Is(err, sys.NotExist) {
		return nil, sys.E(sys.NotExist, path+" does not exist: give the client.toml of a cluster, which is beside its nodes (`koinon dev up` starts one on this machine)")
	}
	if err != nil {
		return nil, err
	}
	c.Blocks.URL = c.Blocks.URL.In(dir)
	absolute(dir, &c.Mount, &c.TLS.CA, &c.TLS.Cert, &c.TLS.Key, &c.Log.File)
	c.SetDefaults()
	if err := c.Validate(); err != nil {
		return nil, sys.E(opRead, sys.Subject(path), err)
	}
	return c, nil
}

// Save writes the node's file, whole or not at all, readable by its owner
// only. Paths are written as they are; what is zero is left out.
func (n *Node) Save(path string) error {
	return encodeFile(path, "# A node of a Koinon cluster: koinon serve --config FILE\n", n)
}

// Save writes the client's file as Node.Save does.
func (c *Client) Save(path string) error {
	return encodeFile(path, "# A client of a Koinon cluster: koinon --config FILE ...\n", c)
}

// DecodeFile reads a TOML file of any other kind, as strictly. v is a pointer
// to a struct with toml tags.
func DecodeFile(path string, v any) error {
	_, err := decodeFile(path, v)
	return err
}

// EncodeFile writes v as TOML below the comment header, as Save does.
func EncodeFile(path, header string, v any) error { return encodeFile(path, header, v) }

// decodeFile decodes strictly and returns the directory from which relative
// paths count: that of the file itself, not of a symbolic link to it.
func decodeFile(path string, v any) (dir string, err error) {
	fail := func(args ...any) (string, error) {
		return "", sys.E(append([]any{opRead, sys.Subject(path)}, args...)...)
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return fail(fileKind(err), plain(err))
	}
	if real, err = filepath.Abs(real); err != nil {
		return fail(err)
	}
	data, err := os.ReadFile(real)
	if err != nil {
		return fail(fileKind(err), plain(err))
	}
	md, err := toml.NewDecoder(bytes.NewReader(data)).Decode(v)
	if err != nil {
		return fail(sys.Invalid, misread(err))
	}
	if msg := otherKind(md, v); msg != "" {
		return fail(sys.Invalid, msg)
	}
	if msg := unknownKeys(md.Undecoded(), v); msg != "" {
		return fail(sys.Invalid, msg)
	}
	return filepath.Dir(real), nil
}

// misread words what the parser found. A file without a key to name is hardly a
// configuration.
func misread(err error) error {
	text := strings.TrimPrefix(err.Error(), "toml: ")
	if e, ok := errors.AsType[toml.ParseError](err); ok && e.LastKey == "" {
		text = "this is no configuration of koinon: " + text
	}
	return errors.New(text)
}

// encodeFile makes or replaces a file, durably.
func encodeFile(path, header string, v any) (err error) {
	defer func() {
		if err != nil {
			err = sys.E(opWrite, sys.Subject(path), fileKind(err), plain(err))
		}
	}()
	var buf bytes.Buffer
	buf.WriteString(header)
	enc := toml.NewEncoder(&buf)
	enc.Indent = ""
	if err := enc.Encode(v); err != nil {
		return err
	}
	return atomicfile.WriteDurably(path, buf.Bytes(), 0o600)
}

// absolute makes the paths that are relative start at dir.
func absolute(dir string, paths ...*string) {
	for _, p := range paths {
		if *p != "" && !filepath.IsAbs(*p) {
			*p = filepath.Join(dir, *p)
		}
	}
}

// plain takes the operation and the path off an error of package os: the
// error around it names them.
func plain(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	return err
}

// fileKind tells the kind of an error of package os.
func fileKind(err error) sys.Kind {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return sys.NotExist
	case errors.Is(err, fs.ErrPermission):
		return sys.Access
	}
	return sys.Other
}
