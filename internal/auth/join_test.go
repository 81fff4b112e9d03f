package auth

import (
	"bytes"
	"crypto/tls"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/koinon/koinon/internal/sys"
)

func newTestToken(t *testing.T, ca *CA) Token {
	t.Helper()
	tok, err := NewToken(issueClient(t, ca, "alice"))
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func expectInvalid(t *testing.T, err error, words string) {
	t.Helper()
	if !sys.Is(err, sys.Invalid) || !strings.Contains(err.Error(), words) {
		t.Errorf("error is %v, expected an invalid argument that says %q", err, words)
	}
}

func TestTokenSurvivesBeingPassedOn(t *testing.T) {
	for _, cluster := range []string{"lab", "a.b.c", "Big-Lab_2"} {
		want := newTestToken(t, newTestCA(t, cluster))
		s := want.Encode()
		for _, written := range []string{s, "  " + s + "\n", "KOINON1" + s[len("koinon1"):], upperTail(s)} {
			got, err := ParseToken(written)
			if err != nil || got != want {
				t.Errorf("%q is read as %v, %v", written, got, err)
			}
		}
		if strings.Contains(want.String(), s[len(s)-30:]) || len(s) > 100+len(cluster) {
			t.Errorf("%d characters, shown as %q", len(s), want.String())
		}
	}
}

// upperTail writes the last four parts in capitals.
func upperTail(s string) string {
	parts := strings.Split(s, ".")
	n := len(parts) - 4
	return strings.Join(parts[:n], ".") + "." + strings.ToUpper(strings.Join(parts[n:], "."))
}

// Any one character that is lost, changed or swapped with its neighbour is told.
func TestTokenTellsSlipsOfThePen(t *testing.T) {
	s := newTestToken(t, newTestCA(t, "lab")).Encode()
	for i := range s {
		changed := []byte(s)
		if changed[i] = 'q'; s[i] == 'q' {
			changed[i] = 'r'
		}
		lost := s[:i] + s[i+1:]
		swapped := []byte(s)
		if i > 0 {
			swapped[i-1], swapped[i] = swapped[i], swapped[i-1]
		}
		for _, bad := range []string{string(changed), lost, string(swapped)} {
			if bad == s {
				continue
			}
			if _, err := ParseToken(bad); !sys.Is(err, sys.Invalid) {
				t.Errorf("%q is taken for %q: %v", bad, s, err)
			} else if parts := strings.Split(s, "."); strings.Contains(err.Error(), parts[3]) {
				t.Errorf("the error tells the secret: %v", err)
			}
		}
	}
	_, err := ParseToken("")
	expectInvalid(t, err, "koinon node token")
	_, err = ParseToken("koinon2.lab.x")
	expectInvalid(t, err, "format")
	_, err = ParseToken(s[:len(s)-9] + "aaaaaaa.aaaaaaa")
	expectInvalid(t, err, "checksum")
	body := "koinon1.lab.aaaaaaaa.aaaa.aaaa" // a good checksum makes no good token
	_, err = ParseToken(body + "." + tokenSum(body))
	expectInvalid(t, err, "wrong size")
}

// TestJoinHandshake: who has only a token finds out that it speaks to the
// right cluster, by one connection, and the server lets it in.
func TestJoinHandshake(t *testing.T) {
	alpha, imposter, beta := newTestCA(t, "alpha"), newTestCA(t, "alpha"), newTestCA(t, "beta")
	tok := newTestToken(t, alpha)
	node := issueNode(t, alpha, 3)
	nobody, server, sErr, cErr := shake(t, node.JoinServerTLS(), tok.ClientTLS())
	if sErr != nil || cErr != nil || nobody != (Identity{}) || server != (Identity{Cluster: "alpha", Node: 3}) {
		t.Errorf("got %+v, %+v, %v, %v", nobody, server, sErr, cErr)
	}
	for name, tc := range map[string]struct {
		server *tls.Config
		token  Token
		says   string
	}{
		"another cluster": {issueNode(t, beta, 3).JoinServerTLS(), tok, `"node/3" of cluster "beta"`},
		"same name":       {issueNode(t, imposter, 3).JoinServerTLS(), tok, "does not know the CA"},
		"stolen chain":    {stolenChain(t, alpha, imposter), tok, "not issued by the CA"},
		"no node":         {clientAsServer(t, alpha), tok, "only nodes may serve"},
		"renamed":         {node.JoinServerTLS(), Token{Cluster: "gamma", CA: tok.CA}, `belongs to cluster "alpha"`},
	} {
		if _, _, _, err := shake(t, tc.server, tc.token.ClientTLS()); err == nil || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v, expected %q", name, err, tc.says)
		}
	}
	early := tok.clientTLS(func() time.Time { return time.Now().Add(-90 * 24 * time.Hour) })
	if _, _, _, err := shake(t, node.JoinServerTLS(), early); err == nil || !strings.Contains(err.Error(), "set the clock") {
		t.Errorf("a clock that is far off: %v", err)
	}
}

// stolenChain is a server with the right CA's certificate that has no
// certificate by it.
func stolenChain(t *testing.T, real, fake *CA) *tls.Config {
	cfg := issueNode(t, fake, 3).JoinServerTLS()
	cfg.Certificates[0].Certificate[1] = real.cert.Raw
	return cfg
}

func clientAsServer(t *testing.T, ca *CA) *tls.Config {
	c := issueClient(t, ca, "mallory")
	return c.JoinServerTLS()
}

// TestJoinServerStillChecks: a certificate that is given must be good.
func TestJoinServerStillChecks(t *testing.T) {
	alpha, imposter := newTestCA(t, "alpha"), newTestCA(t, "alpha")
	cfg := issueNode(t, imposter, 2).ClientTLS()
	cfg.VerifyConnection = nil
	if _, _, sErr, _ := shake(t, issueNode(t, alpha, 1).JoinServerTLS(), cfg); sErr == nil {
		t.Error("a certificate of another CA was let in")
	}
	if ident, _, sErr, _ := shake(t, issueNode(t, alpha, 1).JoinServerTLS(), issueNode(t, alpha, 2).ClientTLS()); sErr != nil || ident.Node != 2 {
		t.Errorf("a node is known as %+v, %v", ident, sErr)
	}
	naked := issueNode(t, alpha, 2).ClientTLS()
	naked.Certificates = nil
	if _, _, sErr, _ := shake(t, issueNode(t, alpha, 1).ServerTLS(), naked); sErr == nil {
		t.Error("a server that admits nobody let a peer without a certificate in")
	}
}

func TestJoinKeyStays(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new")
	key, err := LoadJoinKey(dir, "node")
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(filepath.Join(dir, "node.key")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the key's file: %v, %v", st, err)
	}
	again, err := LoadJoinKey(dir, "node")
	if err != nil || !bytes.Equal(again.Public(), key.Public()) {
		t.Errorf("another key at the second try: %v", err)
	}
	ca := newTestCA(t, "alpha")
	tok := newTestToken(t, ca)
	cert, err := ca.SignNode(9, key.Public(), []string{"10.0.0.9"})
	if err != nil {
		t.Fatal(err)
	}
	other := newTestCA(t, "alpha")
	foreign, err := other.SignNode(9, key.Public(), nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = key.Save(dir, "node", tok, other.CertPEM(), foreign)
	expectInvalid(t, err, "do not belong")
	_, err = key.Save(dir, "node", tok, ca.CertPEM(), foreign)
	expectInvalid(t, err, "not issued by the CA")
	_, err = key.Save(dir, "node", tok, []byte("x"), cert)
	expectInvalid(t, err, "PEM")
	if _, err := os.Stat(filepath.Join(dir, CACertFile)); err == nil {
		t.Error("a refused answer has left files")
	}
	creds, err := key.Save(dir, "node", tok, ca.CertPEM(), cert)
	if err != nil || creds.Identity() != (Identity{Cluster: "alpha", Node: 9}) || creds.leaf.IPAddresses[0].String() != "10.0.0.9" {
		t.Fatalf("got %+v, %v", creds, err)
	}
	if _, err := LoadCredentials(filepath.Join(dir, CACertFile), filepath.Join(dir, "node.crt"), filepath.Join(dir, "node.key")); err != nil {
		t.Error(err)
	}
	_, err = ca.SignNode(0, key.Public(), nil)
	expectInvalid(t, err, "start at 1")
	_, err = ca.SignNode(1, []byte("no key"), nil)
	expectInvalid(t, err, "P-256")
}

// TestEcho: the one who joins proves that it is what answers at its address.
func TestEcho(t *testing.T) {
	key, err := LoadJoinKey(t.TempDir(), "node")
	if err != nil {
		t.Fatal(err)
	}
	echo, err := key.EchoTLS()
	if err != nil {
		t.Fatal(err)
	}
	if err := handshake(t, echo, CheckEcho(key.Public())); err != nil {
		t.Errorf("the right key: %v", err)
	}
	if err := handshake(t, issueNode(t, newTestCA(t, "alpha"), 1).JoinServerTLS(), CheckEcho(key.Public())); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("another key: %v", err)
	}
}

// handshake returns the client's error.
func handshake(t *testing.T, server, client *tls.Config) error {
	a, b := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = tls.Server(a, server).Handshake() // the client tells
		_ = a.Close()
	}()
	err := tls.Client(b, client).Handshake()
	_ = b.Close()
	<-done
	return err
}

// FuzzParseToken: what is taken for a token is one that Encode writes.
func FuzzParseToken(f *testing.F) {
	good := Token{Cluster: "a.b", ID: "aaaaaaaa"}.Encode()
	for _, s := range []string{good, "koinon1.lab", "koinon2." + good, strings.ToUpper(good), good + "." + good, "......", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := ParseToken(s)
		if err != nil {
			if !sys.Is(err, sys.Invalid) {
				t.Errorf("%q: %v", s, err)
			}
			return
		}
		if again, err := ParseToken(tok.Encode()); err != nil || again != tok {
			t.Errorf("%q is %v, which is read as %v, %v", s, tok, again, err)
		}
	})
}
