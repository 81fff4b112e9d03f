package auth

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"strconv"
	"strings"

	"github.com/koinon/koinon/internal/sys"
)

// Identity is who a certificate says its holder is. Node is 0 for a client,
// Name is empty for a node. It converts to wire.Identity.
type Identity struct {
	Cluster string
	Node    sys.NodeID
	Name    string
	Key     string // the KeyHash of the certificate's public key, of PeerIdentity alone
}

const (
	nodePrefix   = "node/"
	clientPrefix = "client/"
)

// commonName returns "node/3" or "client/NAME".
func (i Identity) commonName() string {
	if i.Node != 0 {
		return nodePrefix + strconv.FormatUint(uint64(i.Node), 10)
	}
	return clientPrefix + i.Name
}

// PeerIdentity returns who is at the other end of a connection that was made
// with ServerTLS or ClientTLS, which have verified the certificate.
func PeerIdentity(state tls.ConnectionState) (Identity, error) {
	if len(state.PeerCertificates) == 0 {
		return Identity{}, sys.E(sys.Op("auth.PeerIdentity"), sys.Access, "the peer presented no certificate")
	}
	id, err := identityOf(state.PeerCertificates[0])
	if err != nil {
		return Identity{}, sys.E(sys.Op("auth.PeerIdentity"), sys.Access, err)
	}
	id.Key = string(KeyHash(state.PeerCertificates[0].RawSubjectPublicKeyInfo))
	return id, nil
}

// identityOf reads the identity in a certificate's subject.
func identityOf(cert *x509.Certificate) (Identity, error) {
	if len(cert.Subject.Organization) != 1 {
		return Identity{}, fmt.Errorf("the certificate of %q names %d clusters, expected 1", cert.Subject.CommonName, len(cert.Subject.Organization))
	}
	id := Identity{Cluster: cert.Subject.Organization[0]}
	if num, ok := strings.CutPrefix(cert.Subject.CommonName, nodePrefix); ok {
		n, err := strconv.ParseUint(num, 10, 64)
		if err != nil || n == 0 || strconv.FormatUint(n, 10) != num {
			return Identity{}, fmt.Errorf("%q is no node of a cluster", cert.Subject.CommonName)
		}
		id.Node = sys.NodeID(n)
		return id, nil
	}
	if name, ok := strings.CutPrefix(cert.Subject.CommonName, clientPrefix); ok {
		if err := checkName("client name", name); err != nil {
			return Identity{}, err
		}
		id.Name = name
		return id, nil
	}
	return Identity{}, fmt.Errorf("%q is neither a node nor a client of a cluster", cert.Subject.CommonName)
}
