//go:build linux

package test

import (
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"errors"
	"hash/crc32"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/koinon/koinon/internal/auth"
	"github.com/koinon/koinon/internal/ports"
)

// TestBadNames gives names and paths that are too long, and ones that are no
// UTF-8.
func TestBadNames(t *testing.T) {
	d := up(t, 3)
	const limit = 10 * time.Second
	long := strings.Repeat("n", 256)
	for _, args := range [][]string{
		{"put", "/" + long}, {"mkdir", "/" + long}, {"ls", "/" + long}, {"stat", "/" + long}, {"rm", "/" + long},
		{"mv", "/a", "/" + long}, {"cp", "/dev/null", "koinon:/" + long},
	} {
		d.refused(limit, args, "name too long", "255")
	}
	if _, err := os.Create(filepath.Join(d.mount, long)); err == nil || !strings.Contains(err.Error(), "file name too long") {
		t.Errorf("a name of 256 bytes in the mount: %v", err)
	}
	longest := long[:255]
	writeFile(t, filepath.Join(d.mount, longest), "255")
	if got := d.koinon("cat", "/"+longest); got != "255" {
		t.Errorf("cat: %q", got)
	}

	deep := strings.Repeat("/directory", 500)
	for _, args := range [][]string{{"ls", deep}, {"stat", deep}, {"rm", deep}, {"mkdir", "-p", deep}, {"cat", deep}, {"put", deep}} {
		if out := d.refused(limit, args, "name too long", "4095", "5000 bytes"); len(out) > 1000 {
			t.Errorf("the message has %d bytes", len(out))
		}
	}
	if out := d.koinon("ls", "/"); strings.Contains(out, "directory") {
		t.Errorf("a path that is too long was made in part:\n%s", out)
	}

	raw := "latin-\xe4\xff"
	writeFile(t, filepath.Join(d.mount, raw), "bytes")
	var listed []struct {
		Path string `json:"path"`
		Raw  []byte `json:"path_base64"`
	}
	for _, args := range [][]string{{"ls", "-o", "json", "/"}, {"stat", "-o", "json", "/" + raw}} {
		out := d.koinon(args...)
		if err := json.Unmarshal([]byte(out), &listed); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
		if !strings.Contains(out, base64.StdEncoding.EncodeToString([]byte("/"+raw))) {
			t.Errorf("%v does not tell the name's bytes:\n%s", args, out)
		}
	}
	says(t, d.koinon("stat", "/"+raw), `\xe4\xff`)
	if got := d.koinon("cat", "/"+raw); got != "bytes" {
		t.Errorf("cat: %q", got)
	}
	d.koinon("mv", "/"+raw, "/"+raw+"2")
	d.koinon("rm", "/"+raw+"2")
	if out := d.koinon("ls", "/"); strings.Contains(out, "latin") {
		t.Errorf("not removed:\n%s", out)
	}
}

// TestPortInUse takes a node's port away while the cluster is stopped.
func TestPortInUse(t *testing.T) {
	d := up(t, 3)
	writeFile(t, filepath.Join(d.mount, "kept"), "bytes")
	address := d.node(2).Address
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	d.stop()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	d.refused(10*time.Second, []string{"dev", "up", "--detach", "--dir", d.dir}, "node 2", port, "in use", "ss -ltnp", "dev up")
	d.nothingLeft()
	d.refused(10*time.Second, []string{"dev", "start", "--dir", d.dir, "2"}, "node 2", port, "in use")
	d.refused(10*time.Second, []string{"serve", "--config", d.at("n2", "node.toml")}, address, "in use", "listen")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	d.start()
	holds(t, filepath.Join(d.mount, "kept"), "bytes")
}

// TestForeignDirectory runs a node on a data directory that it must not touch.
func TestForeignDirectory(t *testing.T) {
	d, other := up(t, 3), up(t, 1)
	writeFile(t, filepath.Join(d.mount, "kept"), "bytes")
	writeFile(t, filepath.Join(d.mount, "blocks"), strings.Repeat("block", 1<<20))
	const limit = 10 * time.Second
	serve := func(toml string, more ...string) []string {
		return append([]string{"serve", "--config", toml, "--log-file", d.besides("serve.log")}, more...)
	}
	// A live process has it: with its port, and on another port.
	d.refused(limit, serve(d.at("n1", "node.toml")), "in use", "ss -ltnp")
	d.refused(limit, serve(d.at("n1", "node.toml"), "--listen", freeAddress(t)), d.at("n1", "data"), "in use by another koinon")
	writeFile(t, filepath.Join(d.mount, "still"), "serving")

	d.stop()
	other.stop()
	data := d.at("n1", "data")
	before := fingerprint(t, data)
	unchanged := func(why string) {
		t.Helper()
		if fingerprint(t, data) != before {
			t.Errorf("%s: the directory was changed", why)
		}
	}
	d.refused(limit, serve(other.at("n1", "node.toml"), "--dir", data), data, "belongs to cluster", "move")
	unchanged("another cluster")
	d.refused(limit, serve(d.at("n2", "node.toml"), "--dir", data), data, "belongs to node", "n1")
	unchanged("another node")
	version := filepath.Join(data, "replica", "VERSION")
	edit(t, version, func(s string) string { return replaceOnce(t, s, "format 1", "format 2") })
	changed := fingerprint(t, data)
	d.refused(limit, serve(d.at("n1", "node.toml")), data, "format 2", "run the newer koinon")
	if fingerprint(t, data) != changed {
		t.Error("a newer format: the directory was changed")
	}
	edit(t, version, func(s string) string { return replaceOnce(t, s, "format 2", "format 1") })

	d.newerFiles(data, serve(d.at("n1", "node.toml")))

	d.start()
	holds(t, filepath.Join(d.mount, "kept"), "bytes")
	holds(t, filepath.Join(d.mount, "still"), "serving")
	d.fsck()
}

// newerFiles puts a newer log and newer segments of blocks into a node's data:
// those files stay as they are.
func (d *dev) newerFiles(data string, serve []string) {
	t := d.t
	t.Helper()
	const limit = 10 * time.Second
	logs, blocks := filepath.Join(data, "replica", "log"), filepath.Join(data, "blocks")
	for _, hint := range matches(t, filepath.Join(blocks, "*.hint")) { // what stands for the segments' own words
		if err := os.Remove(hint); err != nil {
			t.Fatal(err)
		}
	}
	before := fingerprint(t, logs)
	segment := filepath.Join(logs, "0000000000000001.log")
	newer(t, segment, 12, 8, 12, 64)
	d.refused(limit, serve, "log", "format 2", "run the newer koinon")
	newer(t, segment, 12, 8, 12, 64)
	if fingerprint(t, logs) != before {
		t.Error("a newer log was changed")
	}
	before = fingerprint(t, blocks)
	segments := matches(t, filepath.Join(blocks, "*.seg"))
	if len(segments) == 0 {
		t.Fatal("no segment of blocks")
	}
	segment = segments[0]
	raw, err := os.ReadFile(segment)
	if err != nil {
		t.Fatal(err)
	}
	sum := bytes.Index(raw, []byte("KBLK")) - 4 // the header ends with it, where the first record begins
	newer(t, segment, 8, sum, 0, sum)
	d.refused(limit, serve, "segment format 2", "install the version")
	newer(t, segment, 8, sum, 0, sum)
	if fingerprint(t, blocks) != before {
		t.Error("newer blocks were changed")
	}
}

func matches(t *testing.T, pattern string) []string {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

func freeAddress(t *testing.T) string {
	t.Helper()
	free, err := ports.Free(1)
	if err != nil {
		t.Fatal(err)
	}
	return ports.Loopback(free[0])
}

// newer flips a header's format, the uint32 at, between 1 and 2 and makes its
// CRC-32C over from..to right again.
func newer(t *testing.T, path string, at, crc, from, to int) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, max(to, crc+4))
	if _, err := f.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	binary.LittleEndian.PutUint32(b[at:], 3-binary.LittleEndian.Uint32(b[at:]))
	binary.LittleEndian.PutUint32(b[crc:], crc32.Checksum(b[from:to], crc32.MakeTable(crc32.Castagnoli)))
	if _, err := f.WriteAt(b, 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestForeignClient comes with certificates that are not this cluster's.
func TestForeignClient(t *testing.T) {
	d, other := up(t, 3), up(t, 1)
	writeFile(t, filepath.Join(d.mount, "kept"), "bytes")
	pids := d.pids()
	addresses := map[string]string{}
	for _, n := range d.status().Nodes {
		addresses[itoa(n.Number)] = n.Address
	}
	foreign := other.at("foreign.toml")
	raw, err := os.ReadFile(other.at("client.toml"))
	if err != nil {
		t.Fatal(err)
	}
	text := replaceOnce(t, string(raw), other.node(1).Address, addresses["1"])
	if err := os.WriteFile(foreign, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	d.refused(10*time.Second, []string{"--config", foreign, "ls", "/"}, addresses["1"], "belongs to cluster", "use a certificate of this cluster")
	d.refused(10*time.Second, []string{"--config", foreign, "mount", d.besides("nowhere")}, "mkdir -p")
	d.refused(10*time.Second, []string{"--config", foreign, "status"}, "down", "belongs to cluster")

	// The CA's certificate is right, the client's own is not: the node refuses.
	caPEM, err := os.ReadFile(d.at("ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, other.at("theirs.crt"), string(caPEM))
	text = replaceOnce(t, text, `"ca.crt"`, `"theirs.crt"`)
	if err := os.WriteFile(foreign, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	d.refused(10*time.Second, []string{"--config", foreign, "ls", "/"}, "client.crt")

	// A CA of the same name is not the same CA.
	var cluster struct {
		Cluster string `json:"cluster"`
	}
	if err := json.Unmarshal([]byte(d.koinon("dev", "status", "--dir", d.dir, "-o", "json")), &cluster); err != nil {
		t.Fatal(err)
	}
	ca, err := auth.NewCA(cluster.Cluster)
	if err != nil {
		t.Fatal(err)
	}
	cred, err := ca.IssueClient("dev")
	if err != nil {
		t.Fatal(err)
	}
	forged := d.besides("forged")
	if err := cred.Save(forged, "client"); err != nil {
		t.Fatal(err)
	}
	edit(t, d.at("client.toml"), func(s string) string {
		if err := os.WriteFile(filepath.Join(forged, "client.toml"), []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
		return s
	})
	d.refused(10*time.Second, []string{"--config", filepath.Join(forged, "client.toml"), "ls", "/"}, "certificate")
	d.expired()
	holds(t, filepath.Join(d.mount, "kept"), "bytes")
	d.unharmed(pids)
}

// expired comes with a certificate of the right CA whose time is over. A node
// must refuse it, so the client does not look at it here.
func (d *dev) expired() {
	t := d.t
	t.Helper()
	pair, err := tls.LoadX509KeyPair(d.at("ca", "ca.crt"), d.at("ca", "ca.key"))
	if err != nil {
		t.Fatal(err)
	}
	issuer, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	old, err := tls.LoadX509KeyPair(d.at("client.crt"), d.at("client.key"))
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(old.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	leaf.NotBefore, leaf.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, leaf, issuer, leaf.PublicKey, pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	old.Certificate[0] = der
	c, err := tls.Dial("tcp", d.node(1).Address, &tls.Config{Certificates: []tls.Certificate{old}, InsecureSkipVerify: true, MinVersion: tls.VersionTLS13})
	if err == nil {
		d.closed(c)
	}
	eventually(t, 5*time.Second, "node 1 tells of the expired certificate", func() bool {
		raw, err := os.ReadFile(d.at("n1", "log"))
		return err == nil && strings.Contains(string(raw), "expired")
	})

	text, err := os.ReadFile(d.at("client.toml"))
	if err != nil {
		t.Fatal(err)
	}
	pem := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := os.WriteFile(d.at("expired.crt"), pem, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(d.at("expired.toml"), []byte(replaceOnce(t, string(text), `"client.crt"`, `"expired.crt"`)), 0o600); err != nil {
		t.Fatal(err)
	}
	d.refused(10*time.Second, []string{"--config", d.at("expired.toml"), "ls", "/"}, "expired", "certificate")
}

// closed waits until the other side has closed a connection.
func (d *dev) closed(c net.Conn) {
	d.t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		d.t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
		d.t.Error("the node keeps the connection")
	}
	_ = c.Close() // what it says goodbye to is gone
}

// pids are the nodes' processes.
func (d *dev) pids() []int {
	d.t.Helper()
	var pids []int
	for _, n := range d.status().Nodes {
		pids = append(pids, n.PID)
	}
	return pids
}

// unharmed checks that the same processes still serve.
func (d *dev) unharmed(before []int) {
	d.t.Helper()
	if now := d.pids(); !slices.Equal(now, before) {
		d.t.Errorf("the nodes were %v and are %v", before, now)
	}
	for _, n := range d.status().Nodes {
		if n.State != "up" {
			d.t.Errorf("node %d is %s", n.Number, n.State)
		}
	}
}

// TestGarbage sends to a node's port what no client sends.
func TestGarbage(t *testing.T) {
	d := up(t, 3)
	writeFile(t, filepath.Join(d.mount, "kept"), "bytes")
	pids := d.pids()
	address := d.node(d.leader()).Address
	dial := func() net.Conn {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	noise := make([]byte, 1<<20)
	if _, err := rand.Read(noise); err != nil {
		t.Fatal(err)
	}
	// A TLS record that says it is long, and comes in part.
	half := append([]byte{22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3}, noise[:100]...)
	var open []net.Conn
	for _, sent := range [][]byte{noise, []byte("GET / HTTP/1.1\r\n\r\n"), make([]byte, 1<<20), half, half[:3], nil} {
		c := dial()
		// The node may close while we write.
		_, _ = c.Write(sent)
		open = append(open, c)
	}
	cert, err := tls.LoadX509KeyPair(d.at("client.crt"), d.at("client.key"))
	if err != nil {
		t.Fatal(err)
	}
	preface := append([]byte("KOIN\x01\x00\x01\x00"), make([]byte, 16)...)
	frame := func(kind byte, header, payload, total uint32) []byte {
		b := append([]byte{}, preface...)
		b = append(b, kind, 0, 1, 0)
		for _, v := range []uint32{header, payload, total, 7, 0, 0, 0} {
			b = binary.LittleEndian.AppendUint32(b, v)
		}
		return append(b, noise[:4096]...)
	}
	for _, sent := range [][]byte{
		noise, []byte("KOIN"), frame(1, 1<<31, 0, 0), frame(1, 0, 1<<31, 1<<31), frame(1, 0, 4096, 1<<31-1),
		frame(99, 0, 0, 0), frame(5, 0, 4096, 4096), frame(1, 4096, 0, 0),
	} {
		c := tls.Client(dial(), &tls.Config{Certificates: []tls.Certificate{cert}, InsecureSkipVerify: true, MinVersion: tls.VersionTLS13})
		_, _ = c.Write(sent)
		open = append(open, c)
	}
	writeFile(t, filepath.Join(d.mount, "meanwhile"), "served")
	var wg sync.WaitGroup
	for i, c := range open {
		if i == 13 {
			continue // a request like any other, but for its bytes: it is answered by an error
		}
		wg.Go(func() { d.closed(c) })
	}
	wg.Wait()
	if err := open[13].Close(); err != nil {
		t.Logf("closing: %v", err)
	}
	d.unharmed(pids)
	holds(t, filepath.Join(d.mount, "kept"), "bytes")
	holds(t, filepath.Join(d.mount, "meanwhile"), "served")
	writeFile(t, filepath.Join(d.mount, "after"), "served")
}
