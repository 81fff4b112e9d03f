package test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// code is the exit code that an error of the binary tells.
func code(err error) int {
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode()
	}
	if err != nil {
		return -1
	}
	return 0
}

// exits runs the binary, which must end with a code and say the words.
func (d *dev) exits(want int, args []string, words ...string) string {
	d.t.Helper()
	out, err := d.try(args...)
	if got := code(err); got != want {
		d.t.Errorf("koinon %s: expected exit code %d, found %d:\n%s", strings.Join(args, " "), want, got, out)
	}
	says(d.t, out, words...)
	return out
}

// TestKeys tries the command line on keys.
func TestKeys(t *testing.T) {
	d := up(t, 1)
	say := func(want int, line string, words ...string) {
		t.Helper()
		d.exits(want, strings.Fields(line), words...)
	}
	say(1, "kv get /a", "there is no key /a")
	say(0, "kv put /a one", "revision 1")
	say(0, "kv cas /a two --if-value one", "revision 2")
	say(3, "kv cas /a three --if-value one", "revision 2")
	say(3, "kv cas /a three --if-absent")
	say(3, "kv cas /b one --if-revision 2", "not there")
	say(0, "kv cas /a three --if-revision 2", "revision 3")
	say(0, "kv get /a --rev 2", "two")
	say(1, "kv get /a --rev 9", "has not come yet")
	say(0, "kv get /a --stale", "three")
	say(0, "kv get /a -o json", `"revision": 3`, `"created_revision": 1`, `"version": 3`)
	say(2, "kv cas /a x", "--if-value")
	say(2, "kv cas /c x --if-absent=false", "--if-value")
	say(2, "kv watch /a --limit -1", "--limit is negative")
	say(2, "kv watch", "koinon kv watch --help")
	say(1, "kv put "+strings.Repeat("k", 4097)+" v", "4097 bytes, at most 4096")
	say(0, "kv watch --prefix /a --from 1 --limit 3", "1 put /a one\n2 put /a two\n3 put /a three\n")
	ahead := d.background("kv", "watch", "/c", "--from", "5")
	ahead.await(10*time.Second, "waiting for revision 5, the newest is 3")
	ahead.signal(syscall.SIGTERM)
	say(0, "kv put /c - -o json", `"revision": 4`, `"size": 0`)
	say(0, "kv put /c four -o json", `"revision": 5`, `"size": 4`)
	say(0, "kv cas /c seven11 --if-revision 5 -o json", `"revision": 6`, `"size": 7`)
	d.exits(0, []string{"kv", "put", "\xff", "x", "-o", "json"}, `"key_base64": "/w=="`)

	raw := make([]byte, 256<<10)
	for i := range raw {
		raw[i] = byte(i * 7)
	}
	config := d.at("client.toml")
	put := exec.Command(koinonBinary(t), "--config", config, "kv", "put", "/raw", "-")
	put.Stdin = strings.NewReader(string(raw))
	if out, err := put.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if out, err := exec.Command(koinonBinary(t), "--config", config, "kv", "get", "/raw").Output(); err != nil || string(out) != string(raw) {
		t.Errorf("%d bytes came back as %d others: %v", len(raw), len(out), err)
	}
	for i := range 3 {
		say(0, fmt.Sprintf("kv put /many/%d x", i))
	}
	say(0, "kv ls /many/ --limit 2", "/many/0\n/many/1\n", "--after /many/1")
	say(0, "kv ls /many/ --after /many/1", "/many/2")
	for _, name := range []string{"a b", "c"} {
		d.exits(0, []string{"kv", "put", "/odd/" + name, "x"})
	}
	say(0, "kv ls /odd/ --limit 1", "--after '/odd/a b' shows them")
	say(0, "kv rm --prefix /many/", "removed 3 keys")
	d.exits(2, []string{"kv", "rm", "--prefix", ""}, "kv rm --all")
	say(0, "kv get /a")
	say(0, "kv rm /a")
	say(1, "kv rm /a", "there is no key /a")
	say(127, "lock l -- /no/such/program", "koinon: cannot run /no/such/program: no such file or directory")
	say(127, "lock l -- nosuchprogram", "koinon: cannot run nosuchprogram: executable file not found in $PATH")
	say(126, "lock l -- /etc/passwd", "koinon: cannot run /etc/passwd: permission denied")
	say(2, "lock l", "koinon lock NAME -- COMMAND")
	d.exits(137, []string{"lock", "l", "--", "sh", "-c", "kill -9 $$"})
	d.exits(7, []string{"lock", "l", "--", "sh", "-c", "exit 7"})
	say(0, "lock ls", "HOLDER")
	say(0, "kv rm --all", "removed")
	if out := d.koinon("kv", "ls"); strings.Contains(out, "raw") {
		t.Errorf("every key was removed, and found are %s", out)
	}
}

// TestKeysWhileLeadersDie counts in a key under a lock, on three clients at a
// time, while leaders are killed. No count is lost, tokens rise, and a watch
// that ran all the while has seen every change once, in order.
func TestKeysWhileLeadersDie(t *testing.T) {
	d := up(t, 3)
	d.koinon("kv", "put", "count", "0")
	watch := d.background("kv", "watch", "--prefix", "", "--from", "1", "-o", "json")
	fences := d.besides("fences")
	script := fmt.Sprintf(`echo $KOINON_FENCE >> %s; n=$(%s kv get count) || exit 1; %[2]s kv cas count $((n+1)) --if-value $n`, fences, koinonBinary(t))
	var wg sync.WaitGroup
	var counted atomic.Int64
	stop := make(chan struct{})
	for range 3 {
		wg.Go(func() {
			for {
				if out, err := d.try("lock", "counter", "--", "sh", "-c", script); err != nil {
					t.Errorf("%v: %s", err, out)
				}
				counted.Add(1)
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	for range 3 {
		before := counted.Load()
		eventually(t, 20*time.Second, "work goes on", func() bool { return counted.Load() > before+3 })
		victim := d.leader()
		d.kill(victim)
		d.restart(victim)
	}
	close(stop)
	wg.Wait()
	if got := d.koinon("kv", "get", "count"); got != fmt.Sprint(counted.Load()) {
		t.Errorf("counted to %s, not to %d", got, counted.Load())
	}
	raw, err := os.ReadFile(fences)
	if err != nil {
		t.Fatal(err)
	}
	last := uint64(0)
	for line := range strings.Lines(string(raw)) {
		fence, err := strconv.ParseUint(strings.TrimSpace(line), 10, 64)
		if err != nil || fence <= last {
			t.Errorf("token %q came after %d", line, last)
		}
		last = fence
	}
	watch.await(10*time.Second, fmt.Sprintf(`"value":"%d"`, counted.Load()))
	watch.signal(syscall.SIGTERM)
	if err := watch.end(10 * time.Second); code(err) != 143 {
		t.Errorf("an interrupted watch ended with %v", err)
	}
	seen := -1
	for line := range strings.Lines(watch.said()) {
		var e struct {
			Key, Value string
			Version    int
		}
		if json.Unmarshal([]byte(line), &e) != nil {
			continue // what it said of trouble
		}
		if seen++; e.Value != strconv.Itoa(seen) || e.Version != seen+1 {
			t.Errorf("change %d is %s", seen, line)
		}
	}
}

// stubborn is a command that does not end when asked to, and tells that it
// lives by making a file grow.
func stubborn(file string) []string {
	return []string{"sh", "-c", "trap '' TERM; while :; do echo >> " + file + "; sleep 0.05; done"}
}

func grown(path string) int64 {
	st, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return st.Size()
}

// still fails the test unless a file has stopped growing.
func still(t *testing.T, path string) {
	t.Helper()
	was := grown(path)
	time.Sleep(300 * time.Millisecond) // several of its steps
	if now := grown(path); now != was {
		t.Errorf("the command still runs: %s grows from %d to %d bytes", path, was, now)
	}
}

// TestLockStops has users stop commands that hold a lock: nobody else gets it before
// all that they have started has ended.
func TestLockStops(t *testing.T) {
	d := up(t, 1)
	hold := func(name, file, grace string) *run {
		t.Helper()
		inner := strings.Join(quoted(stubborn(file)), " ")
		r := d.background("lock", "--ttl", "10s", "--grace", grace, name, "--", "sh", "-c", inner+" & wait")
		eventually(t, 10*time.Second, "the command runs", func() bool { return grown(file) > 0 })
		return r
	}

	asked := hold("asked", d.besides("asked"), "1s")
	asked.signal(syscall.SIGTERM)
	d.koinon("lock", "asked", "--", "true")
	still(t, d.besides("asked"))
	if err := asked.end(5 * time.Second); code(err) != 128+int(syscall.SIGTERM) {
		t.Errorf("stopped by a signal it ended with %v", err)
	}

	twice := hold("twice", d.besides("twice"), "5s")
	twice.signal(syscall.SIGTERM)
	time.Sleep(700 * time.Millisecond) // sooner it is the same signal
	twice.signal(syscall.SIGTERM)
	if err := twice.end(3 * time.Second); code(err) != 128+int(syscall.SIGTERM) {
		t.Errorf("stopped by two signals it ended with %v", err)
	}
	d.koinon("lock", "--try", "twice", "--", "true")
	still(t, d.besides("twice"))
}

// quoted are words as a shell reads them.
func quoted(words []string) (out []string) {
	for _, w := range words {
		out = append(out, "'"+strings.ReplaceAll(w, "'", `'\''`)+"'")
	}
	return out
}

// TestLockIsLost loses locks: by the stop of the process that holds one, by its
// death, and by the loss of the majority.
func TestLockIsLost(t *testing.T) {
	d := up(t, 3)
	const ttl = 3 * time.Second
	hold := func(name, file string) *run {
		t.Helper()
		r := d.background(append([]string{"lock", "--ttl", ttl.String(), "--grace", "1s", name, "--"}, stubborn(file)...)...)
		eventually(t, 10*time.Second, "the command runs", func() bool { return grown(file) > 0 })
		return r
	}

	paused := hold("l", d.besides("paused"))
	paused.signal(syscall.SIGSTOP)
	began := time.Now()
	d.exits(124, []string{"lock", "--try", "l", "--", "true"}, "is held by")
	d.koinon("lock", "l", "--", "true")
	if took := time.Since(began); took < ttl*2/3 {
		t.Errorf("the lock of a process that stands still was given away after %v", took)
	}
	paused.signal(syscall.SIGCONT)
	if err := paused.end(5 * time.Second); code(err) != 123 {
		t.Errorf("a process that lost its lock ended with %v", err)
	}
	says(t, paused.said(), "lock l was lost")
	still(t, d.besides("paused"))

	killed := hold("l", d.besides("killed"))
	killed.signal(syscall.SIGKILL)
	if err := killed.end(5 * time.Second); err == nil {
		t.Error("a killed process ended well")
	}
	still(t, d.besides("killed"))
	d.koinon("lock", "l", "--", "true") // when its time is over

	cut := hold("l", d.besides("cut"))
	obeys := d.background("lock", "--ttl", ttl.String(), "--grace", "1s", "o", "--", "sh", "-c", "echo > "+d.besides("obeys")+"; exec sleep 60")
	eventually(t, 10*time.Second, "the command runs", func() bool { return grown(d.besides("obeys")) > 0 })
	waits := d.background("lock", "--ttl", "2s", "l", "--", "true")
	eventually(t, 10*time.Second, "it waits", func() bool { return strings.Contains(waits.said(), "waiting for lock") })
	leader := d.leader()
	began = time.Now()
	d.kill(leader)
	d.kill(leader%3 + 1)
	for _, r := range []*run{cut, obeys} {
		if err := r.end(20 * time.Second); code(err) != 123 {
			t.Errorf("a process cut off from the majority ended with %v", err)
		}
	}
	if took := time.Since(began); took > ttl+2*time.Second {
		t.Errorf("it held on for %v", took)
	}
	still(t, d.besides("cut"))
	d.restart(leader)
	d.restart(leader%3 + 1)
	d.koinon("lock", "l", "--", "true")
	if err := waits.end(20 * time.Second); err != nil {
		t.Errorf("who waited all the time ended with %v: %s", err, waits.said())
	}
	says(t, waits.said(), "waiting anew")
}
