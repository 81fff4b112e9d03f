//go:build linux

package test

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"testing"
	"time"
)

// logRecord is where a record of a node's log is (docs/formats/log.md).
type logRecord struct {
	path     string
	at, size int
}

// logRecords lists the records of a stopped node's log in order.
func (d *dev) logRecords(number int) []logRecord {
	d.t.Helper()
	paths := matches(d.t, d.at("n"+itoa(number), "data", "replica", "log", "*.log"))
	sort.Strings(paths)
	var found []logRecord
	for _, path := range paths {
		raw, err := os.ReadFile(path)
		if err != nil {
			d.t.Fatal(err)
		}
		if !bytes.HasPrefix(raw, []byte("KOINONWL")) {
			continue // prepared and not in use
		}
		tag := (binary.LittleEndian.Uint64(raw[16:]) + 0x4b6f696e6f6e) * 0x9e3779b97f4a7c15
		for at := 4096; at+48 < len(raw) && binary.LittleEndian.Uint64(raw[at+8:]) == tag; {
			size := (48 + int(binary.LittleEndian.Uint32(raw[at+4:])) + 7) &^ 7
			found = append(found, logRecord{path, at, size})
			at += size
		}
	}
	if len(found) < 20 {
		d.t.Fatalf("%d records in the log of node %d prove nothing", len(found), number)
	}
	return found
}

// patch changes bytes of a file.
func patch(t *testing.T, path string, at int, change func(b []byte), size int) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, size)
	if _, err := f.ReadAt(b, int64(at)); err != nil {
		t.Fatal(err)
	}
	change(b)
	if _, err := f.WriteAt(b, int64(at)); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// someFiles writes small files through the mount, which all go through the log.
func (d *dev) someFiles(prefix string) func() {
	d.t.Helper()
	for i := range 40 {
		writeFile(d.t, filepath.Join(d.mount, prefix+itoa(i)), strings.Repeat(prefix, i+1))
	}
	return func() {
		d.t.Helper()
		for i := range 40 {
			holds(d.t, filepath.Join(d.mount, prefix+itoa(i)), strings.Repeat(prefix, i+1))
		}
	}
}

// TestTornTail leaves a write of the log unfinished, as a power cut does: it is
// cut and told, and nothing is lost.
func TestTornTail(t *testing.T) {
	d := up(t, 3)
	check := d.someFiles("file")
	for n := 1; n <= 3; n++ {
		d.kill(n)
	}
	for n := 1; n <= 3; n++ {
		all := d.logRecords(n)
		last := all[len(all)-1]
		// The next record: its header is there and half of its body.
		var torn []byte
		patch(t, last.path, last.at, func(b []byte) { torn = bytes.Clone(b[:48+(last.size-48)/2]) }, last.size)
		binary.LittleEndian.PutUint64(torn[16:], binary.LittleEndian.Uint64(torn[16:])+1)
		patch(t, last.path, last.at+last.size, func(b []byte) { copy(b, torn) }, len(torn))
	}
	for n := 1; n <= 3; n++ {
		d.restart(n)
	}
	d.leader()
	check()
	for n := 1; n <= 3; n++ {
		raw, err := os.ReadFile(d.at("n"+itoa(n), "log"))
		if err != nil {
			t.Fatal(err)
		}
		says(t, string(raw), "the end of an unfinished log write was cut", "bytes=")
		if trouble := d.clusterStatus()[uint64(n)].Trouble; trouble != "" {
			t.Errorf("node %d is in trouble after a torn tail: %s", n, trouble)
		}
	}
	d.someFiles("after")()
	d.fsck()
}

// TestDamagedLog damages a log in the middle: the node does not vote and says
// what to do. Then it is repaired as docs/operating/repair.md says.
func TestDamagedLog(t *testing.T) {
	d := up(t, 3)
	d.stop()
	d.timeout("3s")
	d.start()
	check := d.someFiles("file")
	for n := 1; n <= 3; n++ {
		d.kill(n)
	}
	all := d.logRecords(3)
	middle := all[len(all)/2]
	patch(t, middle.path, middle.at+48, func(b []byte) {
		for i := range b {
			b[i] ^= 0xff
		}
	}, middle.size-48)

	// One sound node and the damaged one are no majority.
	d.restart(1)
	d.tellsDamage(3)
	d.refused(12*time.Second, []string{"mkdir", "/refused"}, "3s", "koinon status")
	trouble := d.clusterStatus()[3].Trouble
	says(t, trouble, "does not vote", "repair", "move", d.at("n3", "data", "replica"), "rejoin")
	d.refused(12*time.Second, []string{"status"}, trouble)
	raw, err := os.ReadFile(d.at("n3", "log"))
	if err != nil {
		t.Fatal(err)
	}
	says(t, string(raw), "the log is damaged", filepath.Base(middle.path), "this replica does not vote")
	if n := strings.Count(string(raw), "this replica does not vote"); n != 3 {
		t.Errorf("3 starts with a damaged log said so %d times", n)
	}

	// Two sound nodes are, and the damaged one learns what it lost.
	d.restart(2)
	d.leader()
	check()
	after := d.someFiles("after")
	eventually(t, 15*time.Second, "node 3 is repaired by the others", func() bool { return d.sound(3) })
	d.votes(3)

	// By hand, as repair.md says.
	if err := syscall.Kill(d.node(3).PID, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "node 3 ends", func() bool { return d.node(3).PID == 0 })
	if err := os.Rename(d.at("n3", "data", "replica"), d.at("n3", "data", "replica.damaged")); err != nil {
		t.Fatal(err)
	}
	node := d.background("serve", "--config", d.at("n3", "node.toml"), "--rejoin")
	eventually(t, 15*time.Second, "node 3 has rejoined", func() bool { return d.sound(3) })
	d.votes(3)
	check()
	after()
	d.fsck()
	node.signal(syscall.SIGTERM)
	if err := node.end(15 * time.Second); err != nil {
		t.Errorf("serve --rejoin ended with %v", err)
	}
	d.restart(3) // and without --rejoin again
	d.votes(3)
}

// tellsDamage starts a node with a damaged log three times: the damage is known
// from the second time on, and told all the same.
func (d *dev) tellsDamage(number int) {
	d.t.Helper()
	for start := range 3 {
		if start > 0 {
			d.kill(number)
		}
		says(d.t, d.koinon("dev", "start", "--dir", d.dir, itoa(number)), "node "+itoa(number)+" is up",
			"does not vote", d.at("n"+itoa(number), "data", "replica"), "rejoin", "docs/operating/repair.md")
	}
	for _, args := range [][]string{{"dev", "status", "--dir", d.dir}, {"dev", "status", "--dir", d.dir, "-o", "json"}, {"node", "ls"}} {
		says(d.t, d.koinon(args...), "does not vote", "docs/operating/repair.md")
	}
}

// sound reports whether a node is up, has no trouble, and has what was chosen.
func (d *dev) sound(number int) bool {
	d.t.Helper()
	n := d.clusterStatus()[uint64(number)]
	return n.State == "up" && n.Trouble == "" && n.Round > 0 && n.Lag == 0
}

// votes shows that a node votes: with one of the others dead it makes a
// majority.
func (d *dev) votes(number int) {
	d.t.Helper()
	other := number%3 + 1
	d.kill(other)
	name := filepath.Join(d.mount, "voted")
	eventually(d.t, 15*time.Second, "a write with node "+itoa(number)+" in the majority", func() bool {
		return os.WriteFile(name, []byte("voted"), 0o644) == nil
	})
	d.restart(other)
	holds(d.t, name, "voted")
}
