//go:build linux

package test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/koinon/koinon/internal/block/redis/redistest"
	"github.com/koinon/koinon/internal/meta/mysql/mysqltest"
)

// TestTreeInRedis keeps the blocks in Redis, and the metadata with the nodes or
// in MariaDB: programs and people find the same bytes.
func TestTreeInRedis(t *testing.T) {
	t.Run("embedded", func(t *testing.T) {
		d := treeInRedis(t, redistest.Start(t))
		// A node that keeps no blocks comes and goes like any other.
		d.koinon("dev", "add", "--dir", d.dir)
		d.koinon("dev", "rm", "--dir", d.dir, "2")
		d.fsck()
	})
	t.Run("MariaDB", func(t *testing.T) {
		treeInRedis(t, redistest.Start(t), "--meta", inFile(t, mysqltest.Start(t).Create(t, "koinon")))
	})
}

func treeInRedis(t *testing.T, s *redistest.Server, extra ...string) *dev {
	t.Helper()
	d := up(t, 1, append(extra, "--blocks", inFile(t, s.URL(0)))...)
	// A text that is long enough for a block.
	d.sh("for i in $(seq 20000); do echo \"line $i\"; done > $M/file.txt && cp -r /usr/share/doc/apt $M/doc && cp $M/file.txt $M/gone")
	d.sh("diff -r /usr/share/doc/apt $M/doc && rm $M/gone")
	d.fsck()
	want := d.sh("cat $M/file.txt")
	name := d.status().Cluster
	var keys []string
	for key := range strings.Lines(s.CLI("--scan", "--pattern", "koinon:"+name+":b:*")) {
		key = strings.TrimSpace(key)
		var got strings.Builder
		for page := 0; got.Len() < len(want); page++ {
			bytes := strings.TrimSuffix(s.CLI("--raw", "HGET", key, fmt.Sprint(page)), "\n") // which redis-cli adds
			if bytes == "" {
				break
			}
			got.WriteString(bytes)
		}
		if strings.TrimSpace(got.String()) == strings.TrimSpace(want) {
			keys = append(keys, key)
		}
	}
	if len(keys) != 2 {
		t.Fatalf("expected the bytes of file.txt and of gone under a key each, found %v", keys)
	}
	out := d.koinon("status")
	if !strings.Contains(out, "blocks   redis://:***@"+s.Addr()+"/0 (synced before each answer)") || strings.Contains(out, redistest.Coded) {
		t.Errorf("status:\n%s", out)
	}
	if out := d.koinon("df", "-o", "json"); !regexp.MustCompile(`"store_free_bytes": [1-9]\d{7,}`).MatchString(out) {
		t.Errorf("df:\n%s", out)
	}
	d.stop()
	d.start()
	dropCaches(t)
	if got := d.sh("cat $M/file.txt"); got != want {
		t.Error("other bytes after the restart")
	}
	if got := d.koinon("cat", "koinon:/file.txt"); got != want {
		t.Error("other bytes without the mount")
	}
	return d
}

// What cannot work is refused before anything is made, in words that say what
// to do and do not tell the password.
func TestRedisRefused(t *testing.T) {
	s := redistest.Start(t)
	volatile := redistest.Start(t, "--appendonly", "no")
	evicting := redistest.Start(t, "--maxmemory-policy", "allkeys-random")
	d := up(t, 1, "--blocks", inFile(t, s.URL(0)))
	for _, c := range []struct{ url, want string }{
		{strings.Replace(s.URL(0), redistest.Coded, "geheim", 1), "password"},
		{s.URL(77), "database"},
		{strings.Replace(s.URL(0), "redis:", "memcached:", 1), "scheme"},
		{fmt.Sprintf("redis://127.0.0.1:%d", s.Port+10000), "refused"},
		{volatile.URL(0), "set appendonly yes"},
		{evicting.URL(0), "set maxmemory-policy noeviction"},
	} {
		dir := filepath.Join(t.TempDir(), "c")
		out, err := d.try("dev", "up", "--detach", "--nodes", "1", "--dir", dir, "--no-mount", "--blocks", inFile(t, c.url))
		if err == nil || !strings.Contains(out, c.want) || strings.Contains(out, "geheim") || strings.Contains(out, redistest.Password) {
			t.Errorf("%s: expected to be refused because of the %s, without the password, found %v\n%s", c.url, c.want, err, out)
		}
		if _, err := os.Stat(filepath.Join(dir, "dev.toml")); err == nil {
			t.Errorf("%s: a cluster was made all the same", c.want)
		}
	}
	other := up(t, 1, "--blocks", inFile(t, volatile.URL(0)), "--accept-volatile-blocks")
	if out := other.koinon("status"); !strings.Contains(out, "volatile") {
		t.Errorf("status of an accepted volatile store:\n%s", out)
	}

	// A store that is empty, another's, or not where the cluster has it.
	name := d.status().Cluster
	d.stop()
	serve := func(url, want string) {
		t.Helper()
		path, old := d.at("n1/node.toml"), ""
		edit(t, path, func(s string) string {
			old = s
			return regexp.MustCompile(`(?m)^url = .*$`).ReplaceAllString(s, url)
		})
		d.refused(10*time.Second, []string{"serve", "--config", path, "--log-file", d.besides("log")}, want)
		edit(t, path, func(string) string { return old })
	}
	serve("", "keeps its blocks in Redis")
	serve(`url = "`+s.URL(5)+`"`, "lost its data")
	s.CLI("SET", "koinon:"+name+":store", "somebody else")
	serve(`url = "`+s.URL(0)+`"`, "another cluster")
}

// A Redis that is away is waited for as long as the mount's timeout says, and a
// full one is no space left.
func TestRedisTrouble(t *testing.T) {
	s := redistest.Start(t, "--maxmemory", "64mb", "--maxmemory-policy", "noeviction")
	d := up(t, 1, "--blocks", inFile(t, s.URL(0)))
	d.stop()
	d.timeout("3s")
	d.start()
	d.sh("head -c 1M /dev/urandom > $M/a && sha256sum $M/a > sum")
	s.Kill()
	if out, err := d.shell("head -c 1M /dev/urandom > $M/b"); err == nil || !strings.Contains(out, "Input/output error") {
		t.Errorf("without Redis: %v\n%s", err, out)
	}
	log, err := os.ReadFile(d.at("mount/log"))
	if err != nil {
		t.Fatal(err)
	}
	says(t, string(log), "Redis does not answer")
	done := make(chan string)
	go func() {
		out, err := d.shell("head -c 1M /dev/urandom > $M/c; cat $M/a > /dev/null")
		if err != nil {
			out += err.Error()
		}
		done <- out
	}()
	s.Restart()
	if out := <-done; out != "" {
		t.Errorf("when it comes back: %s", out)
	}
	if out, err := d.shell("head -c 100M /dev/urandom > $M/d"); err == nil || !strings.Contains(out, "No space left") {
		t.Errorf("with a full Redis: %v\n%s", err, out)
	}
	d.sh("rm -f $M/d && sha256sum -c sum")
	s.CLI("CONFIG", "SET", "maxmemory", "256mb")
	d.sh("head -c 10M /dev/urandom > $M/e && cp $M/e $M/f && cmp $M/e $M/f")
}

// TestRedisHangs: a Redis that hangs is like one that is away.
func TestRedisHangs(t *testing.T) {
	s := redistest.Start(t)
	d := up(t, 1, "--blocks", inFile(t, s.URL(0)))
	d.stop()
	d.timeout("3s")
	d.start()
	d.sh("head -c 1M /dev/urandom > $M/a && sha256sum $M/a > sum")
	s.Signal(syscall.SIGSTOP)
	for _, c := range []struct{ line, want string }{
		{"head -c 1M /dev/urandom > $M/b", "Input/output error"},
		{"df $M", "Input/output error"},
		{"ls $M", ""}, // for which Redis is not asked
	} {
		began := time.Now()
		out, err := d.shell(c.line)
		if (err == nil) != (c.want == "") || !strings.Contains(out, c.want) {
			t.Errorf("%s: expected %q, found %v\n%s", c.line, c.want, err, out)
		}
		if waited := time.Since(began); waited > 20*time.Second {
			t.Errorf("%s waited for %v", c.line, waited)
		}
	}
	d.refused(20*time.Second, []string{"cat", "koinon:/a"}, s.Addr(), "Redis does not answer")
	d.refused(20*time.Second, []string{"cp", d.at("n1", "node.toml"), "koinon:/c"}, s.Addr(), "Redis does not answer")
	says(t, d.koinon("status"), "Redis does not answer")
	log, err := os.ReadFile(d.at("mount", "log"))
	if err != nil {
		t.Fatal(err)
	}
	says(t, string(log), s.Addr(), "Redis does not answer")
	s.Signal(syscall.SIGCONT)
	d.sh("head -c 1M /dev/urandom > $M/b; sha256sum -c sum")
	d.fsck()
}

// TestCrashLoopInRedis kills nodes and Redis at random moments under a
// checksummed load, and then looks for every acknowledged byte. At length the
// metadata is in MariaDB, which is killed too.
func TestCrashLoopInRedis(t *testing.T) {
	minutes := setting(t, "KOINON_CRASH_MINUTES", 0.2)
	seed := uint64(setting(t, "KOINON_CRASH_SEED", 1))
	t.Logf("seed %d, %.1f minutes", seed, minutes)
	s := redistest.Start(t)
	args := []string{"--blocks", inFile(t, s.URL(0))}
	var db *mysqltest.Server
	if setting(t, "KOINON_CRASH_DATABASE", 0) != 0 {
		db = mysqltest.Start(t)
		args = append(args, "--meta", inFile(t, db.Create(t, "koinon")))
	}
	d := up(t, 3, args...)
	running := startLoad(t, d.mount, seed, 4)
	rng := rand.New(rand.NewPCG(seed, 55))
	kills := map[string]int{}
	var away []span
	for end := time.Now().Add(time.Duration(minutes * float64(time.Minute))); time.Now().Before(end); {
		select {
		case <-running.ended:
			running.finish()
			t.Fatal("the load ended early")
		case <-time.After(time.Duration(300+rng.IntN(1700)) * time.Millisecond):
		}
		kind := []string{"Redis", "Redis", "leader and Redis", "node", "database"}[rng.IntN(5)]
		if kind == "database" && db == nil {
			kind = "Redis"
		}
		kills[kind]++
		victim := 1 + rng.IntN(3)
		killed := time.Now()
		switch kind {
		case "leader and Redis":
			victim = d.leader()
			d.kill(victim)
			s.Kill()
		case "node":
			d.kill(victim)
		case "database":
			db.Kill()
		default:
			s.Kill()
		}
		time.Sleep(time.Duration(rng.IntN(1500)) * time.Millisecond)
		switch kind {
		case "leader and Redis":
			s.Restart()
			away = append(away, span{killed, time.Now()})
			d.restart(victim)
		case "node":
			d.restart(victim)
		case "database":
			db.Restart()
			away = append(away, span{killed, time.Now()})
		default:
			s.Restart()
			away = append(away, span{killed, time.Now()})
		}
	}
	l := running.finish()
	t.Logf("%d operations, %v, the slowest operation took %v, the slowest beyond what Redis and the database were away %v, %d files to check",
		l.ops, kills, l.slow.Round(time.Millisecond), l.beyond(away).Round(time.Millisecond), len(l.files))
	if l.ops < 50 || kills["Redis"] == 0 {
		t.Fatalf("%d operations and %v prove nothing", l.ops, kills)
	}
	dropCaches(t)
	l.check(t)
	d.fsck()
}

// TestRedisClusterMasterDies kills a master of a Redis Cluster of six under
// load. Each block is on a replica before it counts, so nothing is lost, and
// the tree goes on by itself.
func TestRedisClusterMasterDies(t *testing.T) {
	c := redistest.StartCluster(t)
	d := up(t, 1, "--blocks", inFile(t, c.URL()+"?replicas=1"))
	running := startLoad(t, d.mount, 3, 4)
	time.Sleep(2 * time.Second) // of load
	victim := c.Masters()[0]
	victim.Kill()
	c.AwaitMasters(3) // its replica has taken over
	victim.Restart()
	victim.AwaitRole("slave")
	time.Sleep(2 * time.Second) // of load
	l := running.finish()
	t.Logf("%d operations, the slowest took %v", l.ops, l.slow.Round(time.Millisecond))
	dropCaches(t)
	l.check(t)
	d.fsck()
	var total bytes.Buffer
	for _, m := range c.Masters() {
		total.WriteString(m.CLI("DBSIZE"))
	}
	if strings.Contains("\n"+total.String(), "\n0\n") {
		t.Errorf("a master has no block: %q", total.String())
	}
}

// TestBlocksCopy moves a tree to another Redis, and blocks between clusters of
// either kind.
func TestBlocksCopy(t *testing.T) {
	first, second, third := redistest.Start(t), redistest.Start(t), redistest.Start(t)
	d := up(t, 1, "--blocks", inFile(t, first.URL(0)))
	d.sh("head -c 20M /dev/urandom > $M/big && cp -r /usr/share/doc/apt $M/doc && head -c 200K /dev/urandom > $M/small && (cd $M && sha256sum big small > " + d.besides("sums") + ")")
	from, to := inFile(t, first.URL(0)), inFile(t, second.URL(0))
	says(t, d.koinon("blocks", "copy", "--from", from, "--to", inFile(t, third.URL(5))), "clients were connected meanwhile (1:", "run the command again")
	d.sh("cp $M/small $M/later")
	d.stop()
	d.useBlocks(to)
	d.refused(10*time.Second, []string{"serve", "--config", d.at("n1/node.toml"), "--log-file", d.besides("log")}, "lost its data")
	if out := d.koinon("blocks", "copy", "--from", from, "--to", inFile(t, third.URL(5))); strings.HasPrefix(out, "0 blocks") || strings.Contains(out, "connected") {
		t.Errorf("expected what was written after the first copy and no warning, found\n%s", out)
	}
	says(t, d.koinon("blocks", "copy", "--from", from, "--to", to), "blocks copied and read back", " 0 were there")
	says(t, d.koinon("blocks", "copy", "--from", from, "--to", to, "--verify"), "0 blocks copied")
	first.Kill()
	d.start()
	d.sh("cd $M && sha256sum -c " + d.besides("sums"))
	d.fsck()

	// To nodes, and from there into the Redis of yet another cluster.
	nodes := up(t, 3)
	says(t, d.koinon("blocks", "copy", "--from", to, "--to", "cluster:"+nodes.at("client.toml")), "blocks copied and read back")
	other := up(t, 1, "--blocks", inFile(t, third.URL(0)))
	says(t, d.koinon("blocks", "copy", "--from", "cluster:"+nodes.at("client.toml"), "--to", "cluster:"+other.at("client.toml")), "blocks copied and read back")
	says(t, d.koinon("blocks", "copy", "--from", to, "--to", "cluster:"+other.at("client.toml"), "--verify"), "0 blocks copied")
	d.refused(10*time.Second, []string{"blocks", "copy", "--from", inFile(t, third.URL(3)), "--to", to}, "holds no blocks")
	d.refused(10*time.Second, []string{"blocks", "copy", "--from", to}, "--to STORE")
}

// useBlocks changes where the first node and the client find the blocks.
func (d *dev) useBlocks(ref string) {
	d.t.Helper()
	for _, name := range []string{"n1/node.toml", "client.toml"} {
		edit(d.t, d.at(name), func(s string) string {
			return regexp.MustCompile(`(?m)^url = .*$`).ReplaceAllString(s, `url = "`+ref+`"`)
		})
	}
}
