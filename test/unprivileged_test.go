//go:build linux

package test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/koinon/koinon"
)

// nobody is a user without any rights.
const nobody = 65534

// TestDaemonOfAUser: a node whose daemon is not root runs its own user's processes alone, says what it cannot enforce, and accounts
// for what they use all the same.
func TestDaemonOfAUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test has to become another user: run it as root")
	}
	dir, err := os.MkdirTemp("", "koinon-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	u := &otherUser{t: t, dir: dir, binary: filepath.Join(dir, "koinon"), home: filepath.Join(dir, "home")}
	raw, err := os.ReadFile(koinonBinary(t)) // where the binary lies may be closed to others
	for _, err := range []error{err, os.WriteFile(u.binary, raw, 0o755), os.Chmod(dir, 0o755), os.Mkdir(u.home, 0o700), os.Chown(u.home, nobody, nobody)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	cluster := filepath.Join(u.home, "cluster")
	t.Cleanup(func() {
		if out, err := u.koinon(nobody, "dev", "stop", "--dir", cluster); err != nil {
			t.Errorf("dev stop: %v\n%s", err, out)
		}
	})
	if out, err := u.koinon(nobody, "dev", "up", "--detach", "--no-mount", "--nodes", "1", "--dir", cluster); err != nil {
		t.Fatalf("dev up: %v\n%s", err, out)
	}
	u.config = filepath.Join(cluster, "client.toml")

	out, err := u.koinon(nobody, "run", "-m", "1GiB", "--", "sh", "-c", `echo $KOINON_JOB; id -u; head -c 150000000 /dev/zero | tail >/dev/null`)
	job, rest, _ := strings.Cut(out, "\n")
	if err != nil || rest != fmt.Sprintf("%d\n", nobody) {
		t.Fatalf("a process of user %d expected, found %q, %v", nobody, out, err)
	}
	if p := u.inspect(job).TaskList[0].Processes[0]; p.CPU <= 0 || p.MemoryMax < 150e6 {
		t.Errorf("what the process has used expected, found %+v", p)
	}
	var top struct {
		Nodes []koinon.ProcNode `json:"nodes"`
	}
	if out, err = u.koinon(nobody, "top", "-o", "json"); err != nil || json.Unmarshal([]byte(out), &top) != nil || len(top.Nodes) != 1 {
		t.Fatalf("one node expected, found %v, %s", err, out)
	}
	if l := top.Nodes[0].Limits; !strings.Contains(l, "permission denied") && !strings.Contains(l, "read-only file system") {
		t.Errorf("why the node enforces no limits expected, found %q", l)
	}

	out, err = u.koinon(0, "run", "-d", "-q", "--", "true")
	if err != nil {
		t.Fatalf("submit as root: %v\n%s", err, out)
	}
	job = strings.TrimSpace(out)
	await(t, "the reason for which root's job does not run", func() bool {
		w := u.inspect(job).Waiting
		return len(w) > 0 && len(w[0].Refusals) > 0 && strings.Contains(w[0].Refusals[0].Reason, "does not run as root")
	})
	if out, err := u.koinon(0, "kill", job); err != nil {
		t.Errorf("kill: %v\n%s", err, out)
	}
}

// otherUser runs the binary as other users.
type otherUser struct {
	t                         *testing.T
	dir, binary, home, config string
}

func (u *otherUser) koinon(uid uint32, args ...string) (string, error) {
	cmd := exec.Command(u.binary, args...)
	cmd.Dir = u.dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + u.home}
	if u.config != "" {
		cmd.Env = append(cmd.Env, "KOINON_CONFIG="+u.config)
	}
	if uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	}
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, errOut.String())
	}
	return out.String(), err
}

func (u *otherUser) inspect(job string) koinon.JobDetails {
	u.t.Helper()
	var d koinon.JobDetails
	out, err := u.koinon(nobody, "inspect", job, "-o", "json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &d)
	}
	if err != nil || len(d.TaskList) == 0 {
		u.t.Fatalf("inspect %s: %v\n%s", job, err, out)
	}
	return d
}
