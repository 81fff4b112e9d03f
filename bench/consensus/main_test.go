package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// TestMain lets the test program be the replicas' program too.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == "replica" {
		if err := serveReplica(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// TestEveryArm runs all arms for a moment: that the replicas agree on what was
// acknowledged is checked by measure.
func TestEveryArm(t *testing.T) {
	o := options{dir: t.TempDir(), out: "table", rounds: 1, during: 100 * time.Millisecond, warm: 10 * time.Millisecond, bytes: 256}
	arms, groups := "koinon,koinon-client,koinon-memory,hashicorp,etcd", 3
	if hasServers {
		arms, groups = arms+",etcd-server", 4
	}
	if err := o.lists("1,8", arms); err != nil {
		t.Fatal(err)
	}
	r, err := measure(o)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range r.rows() {
		if row.Ops <= 0 || row.P50 <= 0 || row.P99 < row.P50 || row.Syncs <= 0 || row.Allocated <= 0 || row.CPU <= 0 {
			t.Errorf("%+v", row)
		}
	}
	for _, p := range r.proofs {
		if p.Commands == 0 || p.Syncs == 0 {
			t.Errorf("%+v", p)
		}
	}
	if len(r.proofs) != groups {
		t.Errorf("%d groups expected, found %d", groups, len(r.proofs))
	}
	var text, js strings.Builder
	if err := r.table(&text); err != nil {
		t.Error(err)
	}
	if err := r.json(&js); err != nil {
		t.Error(err)
	}
	for _, want := range []string{"koinon-client / hashicorp", "etcd p50 / fdatasync"} {
		if !strings.Contains(text.String(), want) || !strings.Contains(js.String(), want) {
			t.Errorf("%q expected in the table and in JSON, found\n%s\n%s", want, &text, &js)
		}
	}
}

// TestReplicasThatDiffer shows that the proof at the end can fail.
func TestReplicasThatDiffer(t *testing.T) {
	a, b := newLedger(), newLedger()
	one, two := command(1, 32), command(2, 32)
	a.apply(one)
	a.apply(two)
	b.apply(two)
	b.apply(one)
	if a.count != b.count || a.digest == b.digest {
		t.Errorf("the order is part of the digest: found %x and %x", a.digest, b.digest)
	}
}

func TestOptionsAreChecked(t *testing.T) {
	for _, tc := range []struct {
		args, want string
	}{
		{"-depths 0", "no number of commands"},
		{"-depths x", "no number of commands"},
		{"-arms zookeeper", `"zookeeper" is none of`},
		{"-o xml", "table or json"},
		{"-rounds 0", "above 0"},
		{"-bytes 3", "at least 16 bytes"},
	} {
		err := run(strings.Fields(tc.args))
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: an error with %q expected, found %v", tc.args, tc.want, err)
		}
	}
}
