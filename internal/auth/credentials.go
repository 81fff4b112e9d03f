package auth

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/koinon/koinon/internal/atomicfile"
	"github.com/koinon/koinon/internal/sys"
)

// Credentials are what a node or client proves itself with: its certificate,
// its key, and the certificate of the cluster's CA. They are immutable and may
// be used concurrently.
type Credentials struct {
	ca   *x509.Certificate
	leaf *x509.Certificate
	key  *ecdsa.PrivateKey
	id   Identity
	// now is the clock that certificates are checked against.
	now func() time.Time
}

func newCredentials(ca, leaf *x509.Certificate, key *ecdsa.PrivateKey) (*Credentials, error) {
	id, err := identityOf(leaf)
	if err != nil {
		return nil, err
	}
	return &Credentials{ca: ca, leaf: leaf, key: key, id: id, now: time.Now}, nil
}

// Identity returns whose credentials these are.
func (c *Credentials) Identity() Identity { return c.id }

// Key is the Key of the Identity that others see.
func (c *Credentials) Key() []byte { return KeyHash(c.leaf.RawSubjectPublicKeyInfo) }

// NotAfter returns when the certificate expires, for warnings ahead of time.
func (c *Credentials) NotAfter() time.Time { return c.leaf.NotAfter }

// CAPEM, CertPEM and KeyPEM return the parts as LoadCredentials reads them.
// KeyPEM is a secret.
func (c *Credentials) CAPEM() []byte { return certPEM(c.ca.Raw) }

// CertPEM returns the certificate.
func (c *Credentials) CertPEM() []byte { return certPEM(c.leaf.Raw) }

// KeyPEM returns the private key, a secret.
func (c *Credentials) KeyPEM() ([]byte, error) { return keyPEM(c.key) }

// Save writes ca.crt, PREFIX.crt (both 0644) and PREFIX.key (0600) into dir,
// which it makes with mode 0700 when it is missing. Files of the same name are
// replaced, except that a ca.crt of another CA is sys.Exist.
func (c *Credentials) Save(dir, prefix string) error {
	const op = sys.Op("auth.Credentials.Save")
	key, err := c.KeyPEM()
	if err != nil {
		return sys.E(op, sys.Subject(dir), err)
	}
	if err := makeDir(dir); err != nil {
		return sys.E(op, sys.Subject(dir), err)
	}
	caFile := filepath.Join(dir, CACertFile)
	if err := writeSame(caFile, c.CAPEM(), certMode); err != nil {
		return sys.E(op, sys.Subject(caFile), err)
	}
	keyFile := filepath.Join(dir, prefix+".key")
	if err := classify(atomicfile.WriteDurably(keyFile, key, keyMode)); err != nil {
		return sys.E(op, sys.Subject(keyFile), err)
	}
	certFile := filepath.Join(dir, prefix+".crt")
	if err := classify(atomicfile.WriteDurably(certFile, c.CertPEM(), certMode)); err != nil {
		return sys.E(op, sys.Subject(certFile), err)
	}
	return nil
}

// Files are the files that Save wrote, read and not looked into yet: whoever comes to
// a server with a pass (package wire) needs no more. They are immutable and may be used
// concurrently.
type Files struct {
	ca, cert, key file
	credentials   func() (*Credentials, error)
}

// ReadFiles reads what Save wrote. Errors: sys.NotExist for a missing file,
// sys.Access for a key that others may read, sys.Invalid for what is no file.
func ReadFiles(caFile, certFile, keyFile string) (*Files, error) {
	const op = sys.Op("auth.ReadFiles")
	f := &Files{}
	var err error
	if f.ca, err = readFile(caFile, "the cluster's CA certificate"); err != nil {
		return nil, sys.E(op, err)
	}
	if f.cert, err = readFile(certFile, "the certificate"); err != nil {
		return nil, sys.E(op, err)
	}
	if f.key, err = readSecret(keyFile, "the key of the certificate"); err != nil {
		return nil, sys.E(op, err)
	}
	f.credentials = sync.OnceValues(f.parse)
	return f, nil
}

// Digest tells these files, the key among them, from all others.
func (f *Files) Digest() [sha256.Size]byte {
	h := sha256.New()
	for _, part := range []file{f.ca, f.cert, f.key} {
		h.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(part.data))))
		h.Write(part.data)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// Credentials looks into the files, the first time. Errors: sys.Invalid for files
// that do not belong together or a certificate that has expired.
func (f *Files) Credentials() (*Credentials, error) { return f.credentials() }

// ClientTLS is that of the credentials, which are looked into when a server asks for
// them; what is wrong with them is an error of the handshake, sys.Access, then.
func (f *Files) ClientTLS() *tls.Config {
	cfg := plainTLS()
	cfg.InsecureSkipVerify = true // as for ClientTLSFor
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		c, err := f.Credentials()
		if err != nil {
			return sys.E(sys.Op("auth.verify"), sys.Access, err)
		}
		return c.verifyServer(cs, 0)
	}
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		c, err := f.Credentials() // which VerifyConnection was content with: RFC 8446, 4.4
		if err != nil {
			return nil, err
		}
		return c.certificate(), nil
	}
	return cfg
}

func (f *Files) parse() (*Credentials, error) {
	const op = sys.Op("auth.Files.Credentials")
	ca, err := f.ca.cert()
	if err != nil {
		return nil, sys.E(op, err)
	}
	leaf, err := f.cert.cert()
	if err != nil {
		return nil, sys.E(op, err)
	}
	key, err := f.key.privateKey()
	if err != nil {
		return nil, sys.E(op, err)
	}
	if err := checkCA(ca); err != nil {
		return nil, sys.E(op, sys.Invalid, sys.Subject(f.ca.name), err)
	}
	if !key.PublicKey.Equal(leaf.PublicKey) {
		return nil, sys.E(op, sys.Invalid, sys.Subject(f.key.name),
			"the key does not belong to "+f.cert.name+": give the two files that were issued together")
	}
	c, err := newCredentials(ca, leaf, key)
	if err != nil {
		return nil, sys.E(op, sys.Invalid, sys.Subject(f.cert.name), err)
	}
	if _, err := c.verify(leaf, x509.ExtKeyUsageClientAuth); err != nil {
		return nil, sys.E(op, sys.Invalid, sys.Subject(f.cert.name), err)
	}
	return c, nil
}

// LoadCredentials is ReadFiles and Credentials.
func LoadCredentials(caFile, certFile, keyFile string) (*Credentials, error) {
	f, err := ReadFiles(caFile, certFile, keyFile)
	if err != nil {
		return nil, err
	}
	return f.Credentials()
}

// ServerTLS returns the configuration of a server that accepts only nodes and
// clients of its own cluster.
func (c *Credentials) ServerTLS() *tls.Config {
	cfg := c.baseTLS()
	// The CA goes along for those who know but its fingerprint, from a token.
	chain := &cfg.Certificates[0]
	chain.Certificate = append(chain.Certificate, c.ca.Raw)
	// Whoever presents a certificate is verified below, by the same rules on
	// both sides and with errors that say what to do.
	cfg.ClientAuth = tls.RequireAnyClientCert
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		_, err := c.verifyPeer(cs, x509.ExtKeyUsageClientAuth)
		return err
	}
	return cfg
}

// ClientTLS returns the configuration of a client that accepts any node of
// its own cluster as server.
func (c *Credentials) ClientTLS() *tls.Config { return c.ClientTLSFor(0) }

// ClientTLSFor is ClientTLS for a server that must be the given node, so that
// a stale address is noticed; 0 means any.
func (c *Credentials) ClientTLSFor(want sys.NodeID) *tls.Config {
	cfg := c.baseTLS()
	// Go's own check would compare host names, which nodes may change;
	// VerifyConnection checks everything else and the node's identity.
	cfg.InsecureSkipVerify = true
	cfg.VerifyConnection = func(cs tls.ConnectionState) error { return c.verifyServer(cs, want) }
	return cfg
}

func (c *Credentials) verifyServer(cs tls.ConnectionState, want sys.NodeID) error {
	id, err := c.verifyPeer(cs, x509.ExtKeyUsageServerAuth)
	if err != nil {
		return err
	}
	if want != 0 && id.Node != want {
		return sys.E(sys.Op("auth.verify"), sys.Access, fmt.Sprintf(
			"expected node %v at this address, found node %v: the address is out of date", want, id.Node))
	}
	return nil
}

// protocol is the name for ALPN.
const protocol = "koinon"

func (c *Credentials) baseTLS() *tls.Config {
	cfg := plainTLS()
	cfg.Certificates = []tls.Certificate{*c.certificate()}
	return cfg
}

func (c *Credentials) certificate() *tls.Certificate {
	return &tls.Certificate{Certificate: [][]byte{c.leaf.Raw}, PrivateKey: c.key, Leaf: c.leaf}
}

// plainTLS is the configuration of everybody, without certificates.
func plainTLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{protocol},
		// Connections live long, so resumption saves nothing, and every
		// connection verifies its peer afresh.
		SessionTicketsDisabled: true,
		// Records are full from the start: blocks matter more than the first
		// byte of a web page.
		DynamicRecordSizingDisabled: true,
	}
}

// verifyPeer checks the other side's certificate: our CA, our cluster, the
// role, the time.
func (c *Credentials) verifyPeer(cs tls.ConnectionState, usage x509.ExtKeyUsage) (Identity, error) {
	if len(cs.PeerCertificates) == 0 {
		return Identity{}, sys.E(sys.Op("auth.verify"), sys.Access,
			"the peer presented no certificate: only holders of a certificate of cluster "+c.id.Cluster+" may connect")
	}
	id, err := c.verify(cs.PeerCertificates[0], usage)
	if err != nil {
		return Identity{}, sys.E(sys.Op("auth.verify"), sys.Access, err)
	}
	return id, nil
}

// verify checks that cert is a certificate of our cluster for the usage, now.
func (c *Credentials) verify(cert *x509.Certificate, usage x509.ExtKeyUsage) (Identity, error) {
	who := cert.Subject.CommonName
	if len(cert.Subject.Organization) == 1 && cert.Subject.Organization[0] != c.id.Cluster {
		return Identity{}, fmt.Errorf("%q belongs to cluster %q, this is cluster %q: use a certificate of this cluster", who, cert.Subject.Organization[0], c.id.Cluster)
	}
	if err := c.checkTime(cert); err != nil {
		return Identity{}, err
	}
	roots := x509.NewCertPool()
	roots.AddCert(c.ca)
	_, err := cert.Verify(x509.VerifyOptions{
		Roots:       roots,
		CurrentTime: c.now(),
		KeyUsages:   []x509.ExtKeyUsage{usage},
	})
	switch inv, unknown := (x509.CertificateInvalidError{}), (x509.UnknownAuthorityError{}); {
	case err == nil:
	case errors.As(err, &inv) && inv.Reason == x509.IncompatibleUsage:
		return Identity{}, fmt.Errorf("%q is not the certificate of a node, and only nodes may serve", who)
	case errors.As(err, &unknown):
		return Identity{}, fmt.Errorf("the certificate of %q was not issued by the CA that is trusted here (cluster %q, CA key %s): both sides need certificates of the same CA", who, c.id.Cluster, keyID(c.ca))
	default:
		return Identity{}, fmt.Errorf("the certificate of %q cannot be trusted: %w", who, err)
	}
	id, err := identityOf(cert)
	if err != nil {
		return Identity{}, err
	}
	if id.Cluster != c.id.Cluster {
		return Identity{}, fmt.Errorf("%q belongs to cluster %q, this is cluster %q: use a certificate of this cluster", who, id.Cluster, c.id.Cluster)
	}
	return id, nil
}

// checkTime tells an expired certificate from a wrong clock.
func (c *Credentials) checkTime(cert *x509.Certificate) error {
	now := c.now()
	switch {
	case now.Before(cert.NotBefore):
		return fmt.Errorf("the certificate of %q is not valid before %s and this machine's clock says %s: set the clock",
			cert.Subject.CommonName, stamp(cert.NotBefore), stamp(now))
	case now.After(cert.NotAfter):
		return fmt.Errorf("the certificate of %q expired on %s and this machine's clock says %s: issue a new one with the cluster's CA",
			cert.Subject.CommonName, stamp(cert.NotAfter), stamp(now))
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 MST") }

// CAID tells the cluster's CA from every other, in hexadecimal digits.
func (c *Credentials) CAID() string {
	sum := sha256.Sum256(c.ca.RawSubjectPublicKeyInfo)
	return fmt.Sprintf("%x", sum[:16])
}

// keyID returns the first bytes of the CA's key identifier, to tell two CAs of
// the same cluster name apart.
func keyID(ca *x509.Certificate) string {
	id := ca.SubjectKeyId
	return fmt.Sprintf("%x", id[:min(len(id), 4)])
}
