package auth

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"path/filepath"
	"time"

	"github.com/koinon/koinon/internal/sys"
)

// The names of the files that CA.Save writes.
const (
	CACertFile = "ca.crt"
	CAKeyFile  = "ca.key"
)

// Certificates live long, because a cluster whose certificates ran out serves
// nobody; they start in the past, because clocks of young machines are wrong.
const (
	caLife   = 30 * 365 * 24 * time.Hour
	leafLife = 10 * 365 * 24 * time.Hour
	backdate = 30 * 24 * time.Hour
)

// CA is a cluster's certificate authority. It is immutable and may be used
// concurrently.
type CA struct {
	cluster string
	cert    *x509.Certificate
	key     *ecdsa.PrivateKey
}

// NewCA makes the authority of a new cluster, whose ID is 1 to 64 of a-z, A-Z,
// 0-9, '-', '_' and '.'.
func NewCA(cluster string) (*CA, error) { return newCA(cluster, time.Now()) }

func newCA(cluster string, now time.Time) (*CA, error) {
	const op = sys.Op("auth.NewCA")
	if err := checkName("cluster ID", cluster); err != nil {
		return nil, sys.E(op, sys.Invalid, err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, sys.E(op, err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, sys.E(op, err)
	}
	tmpl := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{cluster}, CommonName: "koinon CA"},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(caLife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		return nil, sys.E(op, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, sys.E(op, err)
	}
	return &CA{cluster: cluster, cert: cert, key: key}, nil
}

// Cluster returns the ID of the cluster.
func (ca *CA) Cluster() string { return ca.cluster }

// CertPEM returns the authority's certificate, which is no secret.
func (ca *CA) CertPEM() []byte { return certPEM(ca.cert.Raw) }

// Save writes ca.crt (0644) and ca.key (0600) into dir, which it makes with
// mode 0700 when it is missing. An existing file is sys.Exist: a CA is never
// overwritten, because every certificate depends on it.
func (ca *CA) Save(dir string) error {
	const op = sys.Op("auth.CA.Save")
	key, err := keyPEM(ca.key)
	if err != nil {
		return sys.E(op, sys.Subject(dir), err)
	}
	if err := makeDir(dir); err != nil {
		return sys.E(op, sys.Subject(dir), err)
	}
	if err := writeNew(filepath.Join(dir, CAKeyFile), key, keyMode); err != nil {
		return sys.E(op, sys.Subject(filepath.Join(dir, CAKeyFile)), err)
	}
	if err := writeNew(filepath.Join(dir, CACertFile), ca.CertPEM(), certMode); err != nil {
		return sys.E(op, sys.Subject(filepath.Join(dir, CACertFile)), err)
	}
	return nil
}

// LoadCA reads what Save wrote. Errors: sys.NotExist, sys.Access when the key
// may be read by others than its owner, sys.Invalid when the files are no CA
// of ours or do not belong together.
func LoadCA(dir string) (*CA, error) {
	return LoadCAFiles(filepath.Join(dir, CACertFile), filepath.Join(dir, CAKeyFile))
}

// LoadCAFiles is LoadCA for files that do not lie side by side.
func LoadCAFiles(certFile, keyFile string) (*CA, error) {
	const op = sys.Op("auth.LoadCA")
	cert, err := readCert(certFile, "the cluster's CA certificate")
	if err != nil {
		return nil, sys.E(op, err)
	}
	key, err := readKey(keyFile, "the cluster's CA key")
	if err != nil {
		return nil, sys.E(op, err)
	}
	if err := checkCA(cert); err != nil {
		return nil, sys.E(op, sys.Invalid, sys.Subject(certFile), err)
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, sys.E(op, sys.Invalid, sys.Subject(keyFile),
			"the CA's key does not belong to "+certFile+": restore both from the same backup")
	}
	return &CA{cluster: cert.Subject.Organization[0], cert: cert, key: key}, nil
}

// checkCA returns an error unless cert is the certificate of a cluster's CA.
func checkCA(cert *x509.Certificate) error {
	switch {
	case !cert.IsCA:
		return errors.New("this is no CA certificate: give the cluster's " + CACertFile)
	case len(cert.Subject.Organization) != 1:
		return errors.New("this CA names no cluster: give the " + CACertFile + " that `koinon init` wrote")
	}
	return checkName("cluster ID", cert.Subject.Organization[0])
}

// IssueNode makes the certificate of node id, good both for serving and for
// calling. hosts, names or IP addresses, are noted in it for tools that check
// them; Koinon itself does not.
func (ca *CA) IssueNode(id sys.NodeID, hosts []string) (*Credentials, error) {
	if id == 0 {
		return nil, sys.E(sys.Op("auth.IssueNode"), sys.Invalid, "node IDs start at 1")
	}
	return ca.issue(Identity{Cluster: ca.cluster, Node: id}, hosts, time.Now())
}

// IssueClient makes the certificate of a client. Its name follows the rules of
// NewCA.
func (ca *CA) IssueClient(name string) (*Credentials, error) {
	if err := checkName("client name", name); err != nil {
		return nil, sys.E(sys.Op("auth.IssueClient"), sys.Invalid, err)
	}
	return ca.issue(Identity{Cluster: ca.cluster, Name: name}, nil, time.Now())
}

func (ca *CA) issue(id Identity, hosts []string, now time.Time) (*Credentials, error) {
	const op = sys.Op("auth.issue")
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, sys.E(op, err)
	}
	leaf, err := ca.sign(id, &key.PublicKey, hosts, now)
	if err != nil {
		return nil, err
	}
	return newCredentials(ca.cert, leaf, key)
}

// sign makes the certificate of a key.
func (ca *CA) sign(id Identity, pub *ecdsa.PublicKey, hosts []string, now time.Time) (*x509.Certificate, error) {
	const op = sys.Op("auth.issue")
	serial, err := newSerial()
	if err != nil {
		return nil, sys.E(op, err)
	}
	tmpl := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{ca.cluster}, CommonName: id.commonName()},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(leafLife),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	if tmpl.NotAfter.After(ca.cert.NotAfter) {
		tmpl.NotAfter = ca.cert.NotAfter
	}
	if id.Node != 0 {
		tmpl.ExtKeyUsage = append(tmpl.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else if h != "" {
			tmpl.DNSNames = append(tmpl.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.cert, pub, ca.key)
	if err != nil {
		return nil, sys.E(op, sys.Invalid, sys.Subject(id.commonName()), err)
	}
	return x509.ParseCertificate(der)
}

// newSerial returns 127 random bits, as RFC 5280 section 4.1.2.2 wants them:
// positive and unique.
func newSerial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	return n.Add(n, big.NewInt(1)), nil
}

// checkName returns an error unless s is fit to be a part of a certificate's
// subject and of a file name.
func checkName(what, s string) error {
	if len(s) < 1 || len(s) > 64 {
		return fmt.Errorf("a %s has 1 to 64 characters, %q has %d", what, s, len(s))
	}
	for _, r := range s {
		ok := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_' || r == '.'
		if !ok {
			return fmt.Errorf("a %s consists of a-z, A-Z, 0-9, '-', '_' and '.', %q has %q", what, s, r)
		}
	}
	return nil
}
