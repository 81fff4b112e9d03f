// Package auth makes and checks who is who in a cluster: the cluster's own
// certificate authority (CA), the certificates of its nodes and clients, and
// the TLS configurations that accept nobody else.
//
// A certificate names its holder by identity, not by address: the cluster in
// Organization, "node/3" or "client/alice" in Common Name. Both sides of a
// connection check the chain to the cluster's CA, the cluster and the role;
// host names are not checked, because nodes move between addresses. There is
// no plaintext mode and nothing below TLS 1.3.
package auth
