package auth

import (
	"crypto/tls"
	"crypto/x509"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/koinon/koinon/internal/sys"
)

func newTestCA(t *testing.T, cluster string) *CA {
	t.Helper()
	ca, err := NewCA(cluster)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func issueNode(t *testing.T, ca *CA, id sys.NodeID) *Credentials {
	t.Helper()
	c, err := ca.IssueNode(id, []string{"10.0.0.1", "fe80::1", "host.example", ""})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func issueClient(t *testing.T, ca *CA, name string) *Credentials {
	t.Helper()
	c, err := ca.IssueClient(name)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// shake does a TLS handshake over a pipe and returns both sides' errors and
// what they know of each other.
func shake(t *testing.T, server, client *tls.Config) (sIdent, cIdent Identity, sErr, cErr error) {
	t.Helper()
	a, b := net.Pipe()
	defer func() { _ = b.Close() }()
	srv, cli := tls.Server(a, server), tls.Client(b, client)
	done := make(chan error, 1)
	go func() {
		defer func() { _ = a.Close() }()
		err := srv.Handshake()
		if err == nil {
			_, err = srv.Write([]byte{1})
		}
		done <- err
	}()
	cErr = cli.Handshake()
	if cErr == nil {
		_, cErr = cli.Read(make([]byte, 1)) // the server's verdict
	}
	_ = b.Close()
	sErr = <-done
	if sErr == nil && cErr == nil {
		var err error
		if sIdent, err = PeerIdentity(srv.ConnectionState()); err != nil && len(client.Certificates) > 0 {
			t.Fatal(err)
		}
		if cIdent, err = PeerIdentity(cli.ConnectionState()); err != nil {
			t.Fatal(err)
		}
		keys := func(mine *tls.Config, theirs Identity) {
			if len(mine.Certificates) > 0 && theirs.Key != string(KeyHash(mine.Certificates[0].Leaf.RawSubjectPublicKeyInfo)) {
				t.Errorf("the key of %+v is another", theirs)
			}
		}
		keys(client, sIdent)
		keys(server, cIdent)
		sIdent.Key, cIdent.Key = "", ""
		if v := cli.ConnectionState().Version; v != tls.VersionTLS13 {
			t.Errorf("version is %s", tls.VersionName(v))
		}
	}
	return sIdent, cIdent, sErr, cErr
}

func TestWhoMeetsWhom(t *testing.T) {
	ca := newTestCA(t, "alpha")
	n1, n2, alice := issueNode(t, ca, 1), issueNode(t, ca, 2), issueClient(t, ca, "alice")
	other := newTestCA(t, "alpha")
	beta := newTestCA(t, "beta")
	for _, tc := range []struct {
		name           string
		server, client *tls.Config
		peer           Identity // as the server sees it
		sErr, cErr     string
	}{
		{"node to node", n1.ServerTLS(), n2.ClientTLS(), Identity{Cluster: "alpha", Node: 2}, "", ""},
		{"client to node", n1.ServerTLS(), alice.ClientTLS(), Identity{Cluster: "alpha", Name: "alice"}, "", ""},
		{"expected node", n1.ServerTLS(), n2.ClientTLSFor(1), Identity{Cluster: "alpha", Node: 2}, "", ""},
		{"unexpected node", n1.ServerTLS(), n2.ClientTLSFor(3), Identity{}, "", "expected node n3 at this address, found node n1"},
		{"client as server", alice.ServerTLS(), n2.ClientTLS(), Identity{}, "", "only nodes may serve"},
		{"CA of the same name", n1.ServerTLS(), issueNode(t, other, 2).ClientTLS(), Identity{}, "", "not issued by the CA that is trusted here"},
		{"other cluster", n1.ServerTLS(), issueNode(t, beta, 2).ClientTLS(), Identity{}, "", `belongs to cluster "alpha", this is cluster "beta"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			peer, _, sErr, cErr := shake(t, tc.server, tc.client)
			if peer != tc.peer {
				t.Errorf("the server sees %+v, expected %+v", peer, tc.peer)
			}
			check := func(side string, err error, want string) {
				if want == "" && tc.cErr == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
					t.Errorf("%s: error %v, expected %q", side, err, want)
				}
				if want != "" && !sys.Is(err, sys.Access) {
					t.Errorf("%s: kind %v", side, sys.KindOf(err))
				}
			}
			check("server", sErr, tc.sErr)
			check("client", cErr, tc.cErr)
		})
	}
}

// TestServerVerifies lets a client that trusts everybody meet the server.
func TestServerVerifies(t *testing.T) {
	ca := newTestCA(t, "alpha")
	srv := issueNode(t, ca, 1)
	for _, tc := range []struct {
		name  string
		creds *Credentials
		want  string
	}{
		{"other CA", issueClient(t, newTestCA(t, "alpha"), "eve"), "not issued by the CA"},
		{"other cluster", issueClient(t, newTestCA(t, "beta"), "eve"), "belongs to cluster"},
		{"none", nil, "client didn't provide a certificate"},
		{"expired", issueAt(t, ca, time.Now().Add(-2*leafLife)), "expired on"},
		{"not yet valid", issueAt(t, ca, time.Now().Add(2*backdate)), "set the clock"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"koinon"}}
			if tc.creds != nil {
				cfg = tc.creds.ClientTLS()
				cfg.VerifyConnection = nil
			}
			_, _, sErr, cErr := shake(t, srv.ServerTLS(), cfg)
			if sErr == nil || !strings.Contains(sErr.Error(), tc.want) {
				t.Errorf("server: error %v, expected %q", sErr, tc.want)
			}
			if cErr == nil {
				t.Error("client: no error")
			}
		})
	}
}

func issueAt(t *testing.T, ca *CA, now time.Time) *Credentials {
	t.Helper()
	c, err := ca.issue(Identity{Cluster: ca.cluster, Node: 5}, nil, now)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestClockSkew(t *testing.T) {
	ca := newTestCA(t, "alpha")
	srv, cli := issueNode(t, ca, 1), issueNode(t, ca, 2)
	cli.now = func() time.Time { return time.Now().Add(-29 * 24 * time.Hour) }
	if _, _, sErr, cErr := shake(t, srv.ServerTLS(), cli.ClientTLS()); sErr != nil || cErr != nil {
		t.Errorf("a clock 29 days behind: %v, %v", sErr, cErr)
	}
	cli.now = func() time.Time { return time.Unix(0, 0) }
	if _, _, _, cErr := shake(t, srv.ServerTLS(), cli.ClientTLS()); cErr == nil || !strings.Contains(cErr.Error(), "clock says 1970-01-01") {
		t.Errorf("a clock at 1970: %v", cErr)
	}
}

func TestCertificateContent(t *testing.T) {
	ca := newTestCA(t, "alpha")
	leaf := issueNode(t, ca, 3).leaf
	if leaf.Subject.CommonName != "node/3" || leaf.Subject.Organization[0] != "alpha" {
		t.Errorf("subject is %v", leaf.Subject)
	}
	if len(leaf.IPAddresses) != 2 || len(leaf.DNSNames) != 1 {
		t.Errorf("names are %v and %v", leaf.IPAddresses, leaf.DNSNames)
	}
	if leaf.NotAfter.After(ca.cert.NotAfter) || time.Until(leaf.NotAfter) < 9*365*24*time.Hour {
		t.Errorf("valid until %v", leaf.NotAfter)
	}
	// What others check by the standard rules holds, too.
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: "host.example"}); err != nil {
		t.Error(err)
	}
	// A leaf cannot act as a CA.
	fake := &CA{cluster: "alpha", cert: leaf, key: issueNode(t, ca, 4).key}
	if c, err := fake.IssueNode(9, nil); err == nil {
		if _, err := issueNode(t, ca, 1).verify(c.leaf, x509.ExtKeyUsageClientAuth); err == nil {
			t.Error("a certificate issued by a node is trusted")
		}
	}
}

func TestNames(t *testing.T) {
	for _, bad := range []string{"", strings.Repeat("x", 65), "a b", "a/b", "ä", "a\n"} {
		if _, err := NewCA(bad); !sys.Is(err, sys.Invalid) {
			t.Errorf("cluster %q: %v", bad, err)
		}
	}
	ca := newTestCA(t, "A-z_0.9")
	for _, bad := range []string{"", "a/b", strings.Repeat("x", 65)} {
		if _, err := ca.IssueClient(bad); !sys.Is(err, sys.Invalid) {
			t.Errorf("client %q: %v", bad, err)
		}
	}
	if _, err := ca.IssueNode(0, nil); !sys.Is(err, sys.Invalid) {
		t.Errorf("node 0: %v", err)
	}
}

func TestIdentityOf(t *testing.T) {
	for _, tc := range []struct {
		cn   string
		orgs []string
		want Identity
		ok   bool
	}{
		{"node/3", []string{"c"}, Identity{Cluster: "c", Node: 3}, true},
		{"client/bob", []string{"c"}, Identity{Cluster: "c", Name: "bob"}, true},
		{"node/0", []string{"c"}, Identity{}, false},
		{"node/03", []string{"c"}, Identity{}, false},
		{"node/-1", []string{"c"}, Identity{}, false},
		{"node/x", []string{"c"}, Identity{}, false},
		{"client/", []string{"c"}, Identity{}, false},
		{"client/a b", []string{"c"}, Identity{}, false},
		{"root", []string{"c"}, Identity{}, false},
		{"node/3", nil, Identity{}, false},
		{"node/3", []string{"c", "d"}, Identity{}, false},
	} {
		cert := &x509.Certificate{}
		cert.Subject.CommonName, cert.Subject.Organization = tc.cn, tc.orgs
		got, err := identityOf(cert)
		if got != tc.want || (err == nil) != tc.ok {
			t.Errorf("%q of %q: %+v, %v", tc.cn, tc.orgs, got, err)
		}
	}
	if _, err := PeerIdentity(tls.ConnectionState{}); !sys.Is(err, sys.Access) {
		t.Errorf("no certificate: %v", err)
	}
}

func mode(t *testing.T, name string) fs.FileMode {
	t.Helper()
	st, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	return st.Mode().Perm()
}

func TestFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "sub", "ca")
	ca := newTestCA(t, "alpha")
	if err := ca.Save(dir); err != nil {
		t.Fatal(err)
	}
	if err := newTestCA(t, "alpha").Save(dir); !sys.Is(err, sys.Exist) {
		t.Errorf("overwriting a CA: %v", err)
	}
	loaded, err := LoadCA(dir)
	if err != nil {
		t.Fatal(err)
	}
	if loaded.Cluster() != "alpha" {
		t.Errorf("cluster is %q", loaded.Cluster())
	}
	creds := issueNode(t, loaded, 2)
	node := filepath.Join(t.TempDir(), "node")
	for range 2 { // replacing our own is fine
		if err := creds.Save(node, "node"); err != nil {
			t.Fatal(err)
		}
	}
	if err := issueNode(t, newTestCA(t, "alpha"), 2).Save(node, "node"); !sys.Is(err, sys.Exist) {
		t.Errorf("another CA's credentials in the same directory: %v", err)
	}
	for name, want := range map[string]fs.FileMode{
		dir: 0o700, filepath.Join(dir, "ca.key"): 0o600, filepath.Join(dir, "ca.crt"): 0o644,
		node: 0o700, filepath.Join(node, "node.key"): 0o600, filepath.Join(node, "node.crt"): 0o644, filepath.Join(node, "ca.crt"): 0o644,
	} {
		if got := mode(t, name); got != want {
			t.Errorf("%s has mode %o, expected %o", name, got, want)
		}
	}
	if left, err := filepath.Glob(filepath.Join(node, ".*")); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	back, err := LoadCredentials(filepath.Join(node, "ca.crt"), filepath.Join(node, "node.crt"), filepath.Join(node, "node.key"))
	if err != nil {
		t.Fatal(err)
	}
	if back.Identity() != (Identity{Cluster: "alpha", Node: 2}) || !back.NotAfter().Equal(creds.NotAfter()) {
		t.Errorf("loaded %+v", back.Identity())
	}
	if _, _, sErr, cErr := shake(t, issueNode(t, ca, 1).ServerTLS(), back.ClientTLS()); sErr != nil || cErr != nil {
		t.Errorf("loaded credentials do not work: %v, %v", sErr, cErr)
	}
}

func TestLoadSaysWhatIsWrong(t *testing.T) {
	ca, other := newTestCA(t, "alpha"), newTestCA(t, "alpha")
	fresh := func(t *testing.T) (dir string) {
		dir = t.TempDir()
		if err := ca.Save(dir); err != nil {
			t.Fatal(err)
		}
		if err := issueNode(t, ca, 2).Save(dir, "node"); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	write := func(t *testing.T, name string, data []byte) {
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	key, err := other.IssueClient("x")
	if err != nil {
		t.Fatal(err)
	}
	otherKey, err := key.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		harm func(t *testing.T, dir string)
		kind sys.Kind
		want string
		asCA bool
	}{
		{"no certificate", func(t *testing.T, d string) { _ = os.Remove(filepath.Join(d, "node.crt")) }, sys.NotExist, "is missing", false},
		{"no key", func(t *testing.T, d string) { _ = os.Remove(filepath.Join(d, "node.key")) }, sys.NotExist, "node.key", false},
		{"no CA", func(t *testing.T, d string) { _ = os.Remove(filepath.Join(d, "ca.crt")) }, sys.NotExist, "CA certificate is missing", false},
		{"open key", func(t *testing.T, d string) { _ = os.Chmod(filepath.Join(d, "node.key"), 0o640) }, sys.Access, "chmod 600", false},
		{"garbage", func(t *testing.T, d string) { write(t, filepath.Join(d, "node.crt"), []byte("x")) }, sys.Invalid, "expected the certificate as PEM", false},
		{"bad DER", func(t *testing.T, d string) { write(t, filepath.Join(d, "node.crt"), certPEM([]byte{1})) }, sys.Invalid, "node.crt", false},
		{"other key", func(t *testing.T, d string) { write(t, filepath.Join(d, "node.key"), otherKey) }, sys.Invalid, "does not belong to", false},
		{"other CA", func(t *testing.T, d string) { write(t, filepath.Join(d, "ca.crt"), other.CertPEM()) }, sys.Invalid, "not issued by the CA", false},
		{"leaf as CA", func(t *testing.T, d string) { write(t, filepath.Join(d, "ca.crt"), key.CertPEM()) }, sys.Invalid, "no CA certificate", false},
		{"expired", func(t *testing.T, d string) {
			if err := issueAt(t, ca, time.Now().Add(-2*leafLife)).Save(d, "node"); err != nil {
				t.Fatal(err)
			}
		}, sys.Invalid, "issue a new one", false},
		{"directory as key", func(t *testing.T, d string) {
			_ = os.Remove(filepath.Join(d, "node.key"))
			_ = os.Mkdir(filepath.Join(d, "node.key"), 0o700)
		}, sys.Invalid, "small regular file", false},
		{"CA without key", func(t *testing.T, d string) { _ = os.Remove(filepath.Join(d, "ca.key")) }, sys.NotExist, "CA key is missing", true},
		{"CA with open key", func(t *testing.T, d string) { _ = os.Chmod(filepath.Join(d, "ca.key"), 0o644) }, sys.Access, "mode 0644", true},
		{"CA with other key", func(t *testing.T, d string) { write(t, filepath.Join(d, "ca.key"), otherKey) }, sys.Invalid, "does not belong", true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := fresh(t)
			tc.harm(t, dir)
			var err error
			if tc.asCA {
				_, err = LoadCA(dir)
			} else {
				_, err = LoadCredentials(filepath.Join(dir, "ca.crt"), filepath.Join(dir, "node.crt"), filepath.Join(dir, "node.key"))
			}
			if !sys.Is(err, tc.kind) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("error %v (kind %v), expected %q of kind %v", err, sys.KindOf(err), tc.want, tc.kind)
			}
		})
	}
}

// Files are looked into when a server asks for what is in them, and are told apart by it.
func TestFilesAreLookedIntoLate(t *testing.T) {
	ca := newTestCA(t, "alpha")
	server := issueNode(t, ca, 1).ServerTLS()
	digests := map[[32]byte]string{}
	read := func(name string, c *Credentials, harm func(dir string)) *Files {
		dir := t.TempDir()
		if err := c.Save(dir, "ann"); err != nil {
			t.Fatal(err)
		}
		harm(dir)
		f, err := ReadFiles(filepath.Join(dir, "ca.crt"), filepath.Join(dir, "ann.crt"), filepath.Join(dir, "ann.key"))
		if err != nil {
			t.Fatal(err)
		}
		if was, ok := digests[f.Digest()]; ok {
			t.Errorf("%s and %s have one digest", was, name)
		}
		digests[f.Digest()] = name
		return f
	}
	ann := issueClient(t, ca, "ann")
	for _, tc := range []struct {
		name string
		of   *Credentials
		harm func(dir string)
		want string
	}{
		{"whole", ann, func(string) {}, ""},
		{"issued again", issueClient(t, ca, "ann"), func(string) {}, ""},
		{"no certificate", ann, func(d string) { _ = os.WriteFile(filepath.Join(d, "ann.crt"), []byte("x"), 0o644) }, "expected the certificate as PEM"},
		{"no key", ann, func(d string) { _ = os.WriteFile(filepath.Join(d, "ann.key"), []byte("x"), 0o600) }, "as PEM block"},
		{"another CA", issueClient(t, newTestCA(t, "alpha"), "ann"), func(string) {}, "not issued by the CA that is trusted here"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			peer, _, sErr, cErr := shake(t, server, read(tc.name, tc.of, tc.harm).ClientTLS())
			if tc.want == "" {
				if sErr != nil || cErr != nil || peer != (Identity{Cluster: "alpha", Name: "ann"}) {
					t.Errorf("the server sees %+v, %v; the client %v", peer, sErr, cErr)
				}
				return
			}
			if !sys.Is(cErr, sys.Access) || !strings.Contains(cErr.Error(), tc.want) {
				t.Errorf("error %v (kind %v), expected %q", cErr, sys.KindOf(cErr), tc.want)
			}
		})
	}
}
