package auth

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"

	"github.com/koinon/koinon/internal/atomicfile"
	"github.com/koinon/koinon/internal/sys"
)

const (
	keyMode  fs.FileMode = 0o600
	certMode fs.FileMode = 0o644
	dirMode  fs.FileMode = 0o700

	pemCert = "CERTIFICATE"
	pemKey  = "PRIVATE KEY"

	// maxFile bounds what is read from a file, in bytes.
	maxFile = 1 << 20
)

func certPEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: pemCert, Bytes: der})
}

func keyPEM(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: der}), nil
}

func makeDir(dir string) error { return classify(os.MkdirAll(dir, dirMode)) }

// writeNew creates a file that must not exist, durably.
func writeNew(name string, data []byte, mode fs.FileMode) error {
	err := atomicfile.CreateDurably(name, data, mode)
	if errors.Is(err, fs.ErrExist) {
		return sys.E(sys.Exist, "the file exists already and is not overwritten: move it away if it is no longer needed")
	}
	return classify(err)
}

// writeSame is writeNew that accepts a file with the very same content.
func writeSame(name string, data []byte, mode fs.FileMode) error {
	old, err := os.ReadFile(name)
	if err == nil && bytes.Equal(old, data) {
		return nil
	}
	if err == nil {
		return sys.E(sys.Exist, "the file belongs to another CA and is not overwritten: use another directory")
	}
	return writeNew(name, data, mode)
}

// file is a file of credentials that was read.
type file struct {
	name, what string
	data       []byte
}

// readFile reads a file of credentials; what it is, is for errors.
func readFile(name, what string) (file, error) {
	st, err := os.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return file{}, sys.E(sys.NotExist, sys.Subject(name), what+" is missing: copy it from where it was issued, or name its file")
	}
	if err != nil {
		return file{}, sys.E(sys.Subject(name), classify(err))
	}
	if !st.Mode().IsRegular() || st.Size() > maxFile {
		return file{}, sys.E(sys.Invalid, sys.Subject(name), what+" is expected in a small regular file")
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return file{}, sys.E(sys.Subject(name), classify(err))
	}
	return file{name, what, data}, nil
}

// readSecret is readFile for what nobody but its owner may read.
func readSecret(name, what string) (file, error) {
	f, err := readFile(name, what)
	if err == nil {
		err = checkSecret(name)
	}
	return f, err
}

// decode returns the first PEM block, which must be of the type.
func (f file) decode(typ string) ([]byte, error) {
	block, _ := pem.Decode(f.data)
	if block == nil || block.Type != typ {
		return nil, sys.E(sys.Invalid, sys.Subject(f.name), fmt.Sprintf("expected %s as PEM block %q, found something else", f.what, typ))
	}
	return block.Bytes, nil
}

func (f file) cert() (*x509.Certificate, error) {
	der, err := f.decode(pemCert)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, sys.E(sys.Invalid, sys.Subject(f.name), err)
	}
	return cert, nil
}

func (f file) privateKey() (*ecdsa.PrivateKey, error) {
	der, err := f.decode(pemKey)
	if err != nil {
		return nil, err
	}
	k, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, sys.E(sys.Invalid, sys.Subject(f.name), err)
	}
	key, ok := k.(*ecdsa.PrivateKey)
	if !ok {
		return nil, sys.E(sys.Invalid, sys.Subject(f.name), fmt.Sprintf("expected an ECDSA key, found %T", k))
	}
	return key, nil
}

func readCert(name, what string) (*x509.Certificate, error) {
	f, err := readFile(name, what)
	if err != nil {
		return nil, err
	}
	return f.cert()
}

func parseCert(data []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(data)
	if block == nil || block.Type != pemCert {
		return nil, errors.New("expected a certificate in PEM form, found something else")
	}
	return x509.ParseCertificate(block.Bytes)
}

// readKey reads a private key and insists that nobody but its owner can.
func readKey(name, what string) (*ecdsa.PrivateKey, error) {
	f, err := readSecret(name, what)
	if err != nil {
		return nil, err
	}
	return f.privateKey()
}

// checkSecret returns sys.Access when others than the owner may touch a file.
func checkSecret(name string) error {
	if runtime.GOOS == "windows" {
		return nil // its modes say nothing about who may read
	}
	st, err := os.Stat(name)
	if err != nil {
		return sys.E(sys.Subject(name), classify(err))
	}
	if m := st.Mode().Perm(); m&0o077 != 0 {
		return sys.E(sys.Access, sys.Subject(name), fmt.Sprintf("the key has mode %04o, so others may read it: chmod 600 %s", m, name))
	}
	return nil
}

// classify gives an error of package os its kind.
func classify(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return sys.E(sys.NotExist, err)
	case errors.Is(err, fs.ErrExist):
		return sys.E(sys.Exist, err)
	case errors.Is(err, fs.ErrPermission):
		return sys.E(sys.Access, err)
	}
	return err
}
