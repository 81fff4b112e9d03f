package auth

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"time"

	"github.com/koinon/koinon/internal/sys"
)

// JoinKey is the key pair of a machine that is no node yet. Immutable.
type JoinKey struct {
	key *ecdsa.PrivateKey
	pub []byte // PKIX, ASN.1 DER
}

// LoadJoinKey reads PREFIX.key of dir, or makes it, so that a machine that
// tries to join again does so with the same key. dir is made when it is
// missing.
func LoadJoinKey(dir, prefix string) (*JoinKey, error) {
	const op = sys.Op("auth.LoadJoinKey")
	if err := makeDir(dir); err != nil {
		return nil, sys.E(op, sys.Subject(dir), err)
	}
	name := filepath.Join(dir, prefix+".key")
	if err := makeKey(name); err != nil && !sys.Is(err, sys.Exist) {
		return nil, sys.E(op, sys.Subject(name), err)
	}
	key, err := readKey(name, "this machine's key")
	if err != nil {
		return nil, sys.E(op, err)
	}
	pub, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return nil, sys.E(op, sys.Subject(name), err)
	}
	return &JoinKey{key: key, pub: pub}, nil
}

// makeKey writes a new key to a file that must not exist.
func makeKey(name string) error {
	if _, err := os.Stat(name); err == nil {
		return sys.E(sys.Exist)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	pem, err := keyPEM(key)
	if err != nil {
		return err
	}
	return writeNew(name, pem, keyMode)
}

// Public returns the public key as a node signs it: PKIX, ASN.1 DER.
func (k *JoinKey) Public() []byte { return k.pub }

// EchoTLS returns the configuration of a server that proves to CheckEcho that
// it has the key, which is all that it can prove yet.
func (k *JoinKey) EchoTLS() (*tls.Config, error) {
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "koinon join"},
		NotBefore: time.Now().Add(-backdate), NotAfter: time.Now().Add(backdate)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &k.key.PublicKey, k.key)
	if err != nil {
		return nil, err
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true,
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: k.key}}}, nil
}

// CheckEcho returns the configuration of a client that accepts only a server
// with the public key.
func CheckEcho(pub []byte) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, // the key is all that counts
		VerifyConnection: func(cs tls.ConnectionState) error {
			got, err := x509.MarshalPKIXPublicKey(cs.PeerCertificates[0].PublicKey)
			if err == nil && string(got) != string(pub) {
				err = errors.New("another process answers there")
			}
			return err
		},
	}
}

// Save writes what the cluster issued beside the key that LoadJoinKey made:
// ca.crt and PREFIX.crt. The certificate must be one of a node of the token's
// cluster, by the CA that the token names, for this key, valid now.
func (k *JoinKey) Save(dir, prefix string, t Token, caPEM, certPEM []byte) (*Credentials, error) {
	const op = sys.Op("auth.JoinKey.Save")
	ca, err := parseCert(caPEM)
	if err != nil {
		return nil, sys.E(op, sys.Invalid, err)
	}
	leaf, err := parseCert(certPEM)
	if err != nil {
		return nil, sys.E(op, sys.Invalid, err)
	}
	if fingerprint(ca.Raw) != t.CA || !k.key.PublicKey.Equal(leaf.PublicKey) {
		return nil, sys.E(op, sys.Invalid, "the cluster answered with certificates that do not belong to the token and this machine's key")
	}
	c, err := newCredentials(ca, leaf, k.key)
	if err != nil {
		return nil, sys.E(op, sys.Invalid, err)
	}
	if id, err := c.verify(leaf, x509.ExtKeyUsageServerAuth); err != nil {
		return nil, sys.E(op, sys.Invalid, err)
	} else if id.Cluster != t.Cluster {
		return nil, sys.E(op, sys.Invalid, fmt.Sprintf("the certificate is one of cluster %q, the token is for %q", id.Cluster, t.Cluster))
	}
	return c, c.Save(dir, prefix)
}

// KeyHash names a public key in PKIX, ASN.1 DER: its SHA-256.
func KeyHash(pub []byte) []byte {
	sum := sha256.Sum256(pub)
	return sum[:]
}

// CheckPublicKey returns sys.Invalid unless pub is a key that SignNode takes.
func CheckPublicKey(pub []byte) error {
	_, err := parsePublic(pub)
	return err
}

func parsePublic(pub []byte) (*ecdsa.PublicKey, error) {
	k, err := x509.ParsePKIXPublicKey(pub)
	key, ok := k.(*ecdsa.PublicKey)
	if err != nil || !ok || key.Curve != elliptic.P256() {
		return nil, sys.E(sys.Op("auth.PublicKey"), sys.Invalid, "the public key of the machine that joins is no ECDSA P-256 key")
	}
	return key, nil
}

// SignNode makes the certificate, in PEM form, of node id for a key pair of
// which only the machine that joins has the private half. hosts are as for
// IssueNode.
func (ca *CA) SignNode(id sys.NodeID, pub []byte, hosts []string) ([]byte, error) {
	const op = sys.Op("auth.SignNode")
	if id == 0 {
		return nil, sys.E(op, sys.Invalid, "node IDs start at 1")
	}
	key, err := parsePublic(pub)
	if err != nil {
		return nil, sys.E(op, err)
	}
	leaf, err := ca.sign(Identity{Cluster: ca.cluster, Node: id}, key, hosts, time.Now())
	if err != nil {
		return nil, err
	}
	return certPEM(leaf.Raw), nil
}

// JoinServerTLS is ServerTLS that also lets in who has no certificate yet.
// Such a peer has no identity (PeerIdentity fails for it) and must be allowed
// nothing but to join.
func (c *Credentials) JoinServerTLS() *tls.Config {
	cfg := c.ServerTLS()
	cfg.ClientAuth = tls.RequestClientCert
	verify := cfg.VerifyConnection
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 {
			return nil
		}
		return verify(cs)
	}
	return cfg
}

// ClientTLS returns the configuration of a client without a certificate that
// accepts any node of the token's cluster: one whose chain ends in the CA that
// the token names.
func (t Token) ClientTLS() *tls.Config { return t.clientTLS(time.Now) }

func (t Token) clientTLS(now func() time.Time) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		NextProtos:             []string{protocol},
		SessionTicketsDisabled: true,
		InsecureSkipVerify:     true, // as for ClientTLSFor
		VerifyConnection: func(cs tls.ConnectionState) error {
			if err := t.verifyServer(cs, now); err != nil {
				return sys.E(sys.Op("auth.verify"), sys.Access, err)
			}
			return nil
		},
	}
}

func (t Token) verifyServer(cs tls.ConnectionState, now func() time.Time) error {
	chain := cs.PeerCertificates
	if len(chain) < 2 || fingerprint(chain[1].Raw) != t.CA {
		who := "it"
		if org := chain[0].Subject.Organization; len(org) == 1 {
			who = fmt.Sprintf("it says it is %q of cluster %q, and", chain[0].Subject.CommonName, org[0])
		}
		return fmt.Errorf("this address is not that of a node of the cluster that the token is for (%q): %s does not know the CA that the token names; check the address and the token", t.Cluster, who)
	}
	if err := checkCA(chain[1]); err != nil {
		return err
	}
	c := &Credentials{ca: chain[1], id: Identity{Cluster: t.Cluster}, now: now}
	_, err := c.verify(chain[0], x509.ExtKeyUsageServerAuth)
	return err
}
