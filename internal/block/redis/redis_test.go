package redis_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/koinon/koinon/internal/block"
	"github.com/koinon/koinon/internal/block/blocktest"
	"github.com/koinon/koinon/internal/block/redis"
	"github.com/koinon/koinon/internal/block/redis/redistest"
	"github.com/koinon/koinon/internal/engine"
	"github.com/koinon/koinon/internal/engine/enginetest"
	"github.com/koinon/koinon/internal/sys"
)

func open(t *testing.T, url, cluster string) *redis.Store {
	t.Helper()
	s, err := tryOpen(t, url, cluster)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func tryOpen(t *testing.T, url, cluster string) (*redis.Store, error) {
	t.Helper()
	u, err := engine.Parse(url)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	return redis.Open(ctx, redis.Config{URL: u, Cluster: cluster, Identity: "id of " + t.Name()})
}

// conformance runs the suite of block.Store, each test in a cluster of its own.
func conformance(t *testing.T, url string, damage func(key string, off int)) {
	var n atomic.Int64
	blocktest.Run(t, func(t *testing.T) block.Store {
		return open(t, url, fmt.Sprintf("c%d", n.Add(1)))
	}, blocktest.Options{Damage: func(t *testing.T, _ block.Store, key sys.BlockKey, off int) {
		damage(fmt.Sprintf("koinon:c%d:b:%v", n.Load(), key), off)
	}})
}

// flip changes a byte of a block.
func flip(s *redistest.Server, key string, off int, flags ...string) {
	cli := func(args ...string) string { return s.CLI(append(slices.Clone(flags), args...)...) }
	// redis-cli takes a script, in which bytes are bytes.
	cli("EVAL", `local p = redis.call("HGET", KEYS[1], ARGV[1])
		local i = tonumber(ARGV[2])
		local b = string.char((string.byte(p, i + 1) + 1) % 256)
		return redis.call("HSET", KEYS[1], ARGV[1], string.sub(p, 1, i) .. b .. string.sub(p, i + 2))`,
		"1", key, fmt.Sprint(off/sys.PageSize), fmt.Sprint(off%sys.PageSize))
}

func TestConformance(t *testing.T) {
	s := redistest.Start(t)
	conformance(t, s.URL(3), func(key string, off int) { flip(s, key, off, "-n", "3") })
}

func TestConformanceOverSocket(t *testing.T) {
	s := redistest.Start(t)
	blocktest.Run(t, func(t *testing.T) block.Store {
		s.CLI("FLUSHALL")
		return open(t, fmt.Sprintf("redis://:%s@/0?socket=%s", redistest.Coded, s.Socket()), "c")
	})
}

func TestConformanceOnCluster(t *testing.T) {
	c := redistest.StartCluster(t)
	conformance(t, c.URL(), func(key string, off int) { flip(c.Servers[0], key, off, "-c") })
	t.Run("Spread", func(t *testing.T) {
		st := open(t, c.URL(), "spread")
		for i := range uint64(60) {
			if err := st.Put(t.Context(), blocktest.Key(i+1, 0, 0), []byte("x")); err != nil {
				t.Fatal(err)
			}
		}
		for _, m := range c.Masters() {
			if out := m.CLI("--scan", "--pattern", "koinon:spread:b:*"); strings.Count(out, "\n") < 5 {
				t.Errorf("expected a share of 60 blocks at each master, found %q at one", out)
			}
		}
	})
}

// A value is told from one that was cut, and from another block's.
func TestForeignValues(t *testing.T) {
	srv := redistest.Start(t)
	s := open(t, srv.URL(0), "c")
	a, b := blocktest.Key(1, 0, 0), blocktest.Key(2, 0, 0)
	for _, k := range []sys.BlockKey{a, b} {
		if err := s.Put(t.Context(), k, blocktest.Bytes(k, 100_000)); err != nil {
			t.Fatal(err)
		}
	}
	srv.CLI("RENAME", "koinon:c:b:"+a.String(), "koinon:c:b:"+b.String())
	srv.CLI("HSET", "koinon:c:b:"+a.String(), "sums", "hello")
	srv.CLI("SET", "koinon:c:b:s3.0/0", "x")
	if err := s.Put(t.Context(), blocktest.Key(4, 0, 0), blocktest.Bytes(a, 100_000)); err != nil {
		t.Fatal(err)
	}
	srv.CLI("HDEL", "koinon:c:b:s4.0/0", "0")
	for _, k := range []sys.BlockKey{a, b, blocktest.Key(3, 0, 0), blocktest.Key(4, 0, 0)} {
		if err := s.Get(t.Context(), k, 0, make([]byte, 1)); !sys.Is(err, sys.Corrupt) {
			t.Errorf("%v: expected corrupt data, found %v", k, err)
		}
	}
}

// What a writer that died has put of a block is none, and the next try
// completes it.
func TestHalfABlock(t *testing.T) {
	srv := redistest.Start(t)
	s := open(t, srv.URL(0), "c")
	key := blocktest.Key(1, 0, 0)
	data := blocktest.Bytes(key, 100_000)
	if err := s.Put(t.Context(), key, data); err != nil {
		t.Fatal(err)
	}
	srv.CLI("HDEL", "koinon:c:b:"+key.String(), "1", "sums")
	has, err := s.Has(t.Context(), key)
	if err != nil || has {
		t.Errorf("half a block is one: %v", err)
	}
	if err := s.Get(t.Context(), key, 0, make([]byte, 1)); !sys.Is(err, sys.NotExist) {
		t.Errorf("half a block is read: %v", err)
	}
	if infos, err := s.List(t.Context(), 0, sys.BlockKey{}, 0); err != nil || len(infos) != 0 {
		t.Errorf("half a block is listed: %v, %v", infos, err)
	}
	if err := s.Put(t.Context(), key, data); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(data))
	if err := s.Get(t.Context(), key, 0, got); err != nil || !bytes.Equal(got, data) {
		t.Errorf("completed: %v", err)
	}
}

// A block that a full server has not taken whole, but its sums, is told.
func TestLackingPages(t *testing.T) {
	srv := redistest.Start(t)
	s := open(t, srv.URL(0), "c")
	whole, broken := blocktest.Key(1, 0, 0), blocktest.Key(2, 0, 0)
	for _, key := range []sys.BlockKey{whole, broken} {
		if err := s.Put(t.Context(), key, blocktest.Bytes(key, 200_000)); err != nil {
			t.Fatal(err)
		}
	}
	srv.CLI("HDEL", "koinon:c:b:"+broken.String(), "1", "3")
	if err := s.Get(t.Context(), broken, 0, make([]byte, 200_000)); !sys.Is(err, sys.Corrupt) || !strings.Contains(err.Error(), "page 1 of 4 is missing") {
		t.Errorf("found %v", err)
	}
	found := map[sys.BlockKey]string{}
	err := s.WalkWhole(t.Context(), func(infos []block.Info) error {
		for _, i := range infos {
			found[i.Key] = i.Lacks
		}
		return nil
	})
	if err != nil || len(found) != 2 || found[whole] != "" || found[broken] != "2 of its 4 pages, page 1 first" {
		t.Errorf("found %q, %v", found, err)
	}
}

// The bytes of a block are those of its pages.
func TestReadableByPeople(t *testing.T) {
	srv := redistest.Start(t)
	s := open(t, srv.URL(0), "prod")
	key := blocktest.Key(12, 7, 3)
	if err := s.Put(t.Context(), key, []byte("hello, world")); err != nil {
		t.Fatal(err)
	}
	if out := srv.CLI("--raw", "HGET", "koinon:prod:b:s12.7/3", "0"); out != "hello, world\n" {
		t.Errorf("found %q", out)
	}
}

// A store belongs to one cluster, whatever others are called.
func TestIdentity(t *testing.T) {
	srv := redistest.Start(t)
	u, err := engine.Parse(srv.URL(0))
	if err != nil {
		t.Fatal(err)
	}
	as := func(identity string) *redis.Store {
		s, err := redis.Open(t.Context(), redis.Config{URL: u, Cluster: "prod", Identity: identity})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return s
	}
	mine, other := as("a"), as("b")
	if err := mine.Verify(t.Context()); !errors.Is(err, redis.ErrUnclaimed) {
		t.Errorf("an empty store: %v", err)
	}
	if err := mine.BeginCopy(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := mine.Verify(t.Context()); !errors.Is(err, redis.ErrUnclaimed) || !strings.Contains(err.Error(), "was not finished") || strings.Contains(err.Error(), "lost its data") {
		t.Errorf("half a copy: %v", err)
	}
	if err := other.Verify(t.Context()); !errors.Is(err, redis.ErrUnclaimed) || !strings.Contains(err.Error(), "lost its data") {
		t.Errorf("half a copy of another's: %v", err)
	}
	if err := errors.Join(mine.BeginCopy(t.Context()), mine.EndCopy(t.Context()), mine.Verify(t.Context())); err != nil {
		t.Errorf("a copy that went on: %v", err)
	}
	srv.CLI("DEL", "koinon:prod:store")
	for range 2 {
		if err := mine.Claim(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := mine.Verify(t.Context()); err != nil {
		t.Error(err)
	}
	for _, err := range []error{other.Verify(t.Context()), other.Claim(t.Context())} {
		if !sys.Is(err, sys.Exist) || !strings.Contains(err.Error(), "another cluster") {
			t.Errorf("another's store: %v", err)
		}
	}
	if err := mine.Put(t.Context(), blocktest.Key(1, 0, 0), []byte("x")); err != nil {
		t.Fatal(err)
	}
	srv.CLI("DEL", "koinon:prod:store")
	if err := other.Claim(t.Context()); !sys.Is(err, sys.Exist) {
		t.Errorf("blocks of nobody: %v", err)
	}
}

// Each message says which part is wrong, and none tells the password.
func TestWrongParts(t *testing.T) {
	srv := redistest.Start(t)
	clustered := redistest.Start(t, "--cluster-enabled", "yes")
	for _, c := range []struct {
		url  string
		kind sys.Kind
		want string
	}{
		{strings.Replace(srv.URL(0), redistest.Coded, "hush", 1), sys.Access, "password"},
		{strings.Replace(srv.URL(0), ":"+redistest.Coded+"@", "", 1), sys.Access, "password"},
		{strings.Replace(srv.URL(0), "://:", "://nobody:", 1), sys.Access, "user"},
		{srv.URL(99), sys.Invalid, "database"},
		{strings.Replace(srv.URL(0), "/0", "/x", 1), sys.Invalid, "database"},
		{fmt.Sprintf("redis://127.0.0.1:%d", srv.Port+10000), sys.Unavailable, "refused"},
		{"redis://no-such-host.invalid", sys.Unavailable, "no-such-host.invalid"},
		{strings.Replace(srv.URL(0), "redis:", "rediss:", 1), sys.Unavailable, "TLS"},
		{strings.Replace(srv.URL(0), "redis:", "mongodb:", 1), sys.Invalid, "scheme"},
		{strings.Replace(srv.URL(0), "redis:", "redis+ring:", 1), sys.Invalid, "scheme"},
		{strings.Replace(srv.URL(0), "redis:", "redis+cluster:", 1), sys.Invalid, "scheme"},
		{clustered.URL(0), sys.Invalid, "scheme"},
		{srv.URL(0) + "?ca=/x", sys.Invalid, "rediss"},
		{srv.URL(0) + "?replicas=many", sys.Invalid, "replicas"},
		{srv.URL(0) + "?color=red", sys.Invalid, "color"},
		{"redis+sentinel://h", sys.Invalid, "master"},
		{"redis+cluster://h/1", sys.Invalid, "database"},
		{"redis://h,g", sys.Invalid, "redis+cluster"},
	} {
		s, err := tryOpen(t, c.url, "c")
		if !sys.Is(err, c.kind) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: expected %v about the %s, found %v", engine.Redact(c.url), c.kind, c.want, err)
		}
		if err != nil && (strings.Contains(err.Error(), "hush") || strings.Contains(err.Error(), redistest.Password)) {
			t.Errorf("the error tells the password: %v", err)
		}
		if s != nil {
			_ = s.Close()
		}
	}
}

func TestFull(t *testing.T) {
	srv := redistest.Start(t, "--maxmemory", "8mb", "--maxmemory-policy", "noeviction")
	s := open(t, srv.URL(0), "c")
	var err error
	put := []sys.BlockKey{}
	for i := uint64(1); err == nil && i < 20; i++ {
		key := blocktest.Key(i, 0, 0)
		if err = s.Put(t.Context(), key, blocktest.Bytes(key, 1<<20)); err == nil {
			put = append(put, key)
		}
	}
	if !sys.Is(err, sys.NoSpace) || !strings.Contains(err.Error(), "maxmemory") || len(put) < 2 {
		t.Fatalf("after %d blocks: %v", len(put), err)
	}
	// A page that is refused lets go of its memory, and the sums behind it fit.
	for i := uint64(20); i < 40; i++ {
		key := blocktest.Key(i, 0, 0)
		err := s.Put(t.Context(), key, blocktest.Bytes(key, 1<<20-int(i)))
		if has, herr := s.Has(t.Context(), key); herr != nil || has != (err == nil) {
			t.Fatalf("%v: put: %v; it is there: %v, %v", key, err, has, herr)
		}
	}
	for _, key := range put {
		got := make([]byte, 1<<20)
		if err := s.Get(t.Context(), key, 0, got); err != nil || !bytes.Equal(got, blocktest.Bytes(key, 1<<20)) {
			t.Fatalf("%v: %v", key, err)
		}
	}
	if u, err := s.Usage(t.Context()); err != nil || u.Total != 8<<20 || u.Free > 2<<20 {
		t.Errorf("usage: %+v, %v", u, err)
	}
	if err := s.Delete(t.Context(), put); err != nil {
		t.Fatal(err)
	}
	if err := block.Retried(s, time.Minute).Put(t.Context(), blocktest.Key(99, 0, 0), make([]byte, 1<<20)); err != nil {
		t.Errorf("with space again: %v", err)
	}
}

func TestSettings(t *testing.T) {
	for _, c := range []struct {
		args          []string
		want, promise string // of the refusal, empty when there is none
	}{
		{nil, "", "before each answer"},
		{[]string{"--appendfsync", "everysec"}, "", "every second"},
		{[]string{"--appendfsync", "no"}, "", "kernel"},
		{[]string{"--appendonly", "no", "--save", "60 1"}, "", "snapshots"},
		{[]string{"--appendonly", "no"}, "set appendonly yes", "volatile"},
		{[]string{"--maxmemory-policy", "allkeys-lru"}, "set maxmemory-policy noeviction", "volatile"},
		{[]string{"--maxmemory-policy", "volatile-lru"}, "", "before each answer"},
		{[]string{"--rename-command", "CONFIG", ""}, "", "kernel"},
		{[]string{"--rename-command", "CONFIG", "", "--appendonly", "no", "--save", "60 1"}, "does not tell", "volatile"},
	} {
		srv := redistest.Start(t, c.args...)
		all, err := open(t, srv.URL(0), "c").Settings(t.Context())
		if err != nil || len(all) != 1 {
			t.Fatalf("%v: %v, %v", c.args, all, err)
		}
		err = redis.Volatile(all)
		if (err != nil) != (c.want != "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: expected %q, found %v", c.args, c.want, err)
		}
		if !strings.Contains(redis.Promise(all), c.promise) {
			t.Errorf("%v: expected %q, found %q", c.args, c.promise, redis.Promise(all))
		}
	}
}

// A server that was away is no error to those who wait.
func TestAway(t *testing.T) {
	srv := redistest.Start(t)
	s := open(t, srv.URL(0), "c")
	key := blocktest.Key(1, 0, 0)
	want := blocktest.Bytes(key, 300_000)
	if err := s.Put(t.Context(), key, want); err != nil {
		t.Fatal(err)
	}
	srv.Kill()
	if err := s.Get(t.Context(), key, 0, make([]byte, 1)); !sys.Is(err, sys.Unavailable) {
		t.Fatalf("without a server: %v", err)
	}
	got := make([]byte, len(want))
	done := make(chan error)
	go func() { done <- block.Retried(s, time.Minute).Get(context.Background(), key, 0, got) }()
	srv.Restart()
	if err := <-done; err != nil || !bytes.Equal(got, want) {
		t.Fatalf("after the restart: %v", err)
	}
}

// However many calls have failed while a server was away, the first one after
// it has come back finds it.
func TestBackAtOnce(t *testing.T) {
	srv := redistest.Start(t)
	s := open(t, srv.URL(0), "c")
	key := blocktest.Key(1, 0, 0)
	if err := s.Put(t.Context(), key, []byte("x")); err != nil {
		t.Fatal(err)
	}
	for round := range 3 {
		srv.Kill()
		for range 40 {
			err := s.Get(t.Context(), key, 0, make([]byte, 1))
			if !sys.Is(err, sys.Unavailable) || !strings.Contains(err.Error(), srv.Addr()) {
				t.Fatalf("expected to be told that the server at %s is away, found %v", srv.Addr(), err)
			}
		}
		srv.Restart()
		if err := s.Get(t.Context(), key, 0, make([]byte, 1)); err != nil {
			t.Fatalf("round %d: the server serves again, but: %v", round, err)
		}
	}
}

// A server that is killed while a child of it writes its data leaves connections
// that nobody serves and nobody ends. Calls on them do not wait for their own limit.
func TestOrphanedConnections(t *testing.T) {
	srv := redistest.Start(t, "--rdb-key-save-delay", "30000000") // the child takes 30 s for a key
	s := open(t, srv.URL(0), "c")
	key := blocktest.Key(1, 0, 0)
	want := blocktest.Bytes(key, 300_000)
	if err := s.Put(t.Context(), key, want); err != nil {
		t.Fatal(err)
	}
	srv.CLI("BGREWRITEAOF")
	srv.KillBesideChild()
	srv.Restart()
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Second) // less than a call's own limit
	defer cancel()
	got := make([]byte, len(want))
	if err := block.Retried(s, time.Minute).Get(ctx, key, 0, got); err != nil || !bytes.Equal(got, want) {
		t.Errorf("reading: %v", err)
	}
	key = blocktest.Key(2, 0, 0)
	if err := block.Retried(s, time.Minute).Put(ctx, key, blocktest.Bytes(key, sys.BlockSize)); err != nil {
		t.Errorf("writing: %v", err)
	}
}

func TestSentinel(t *testing.T) {
	w := redistest.StartSentinel(t)
	bare, _, _ := strings.Cut(w.URL(), "?")
	if _, err := tryOpen(t, bare, "c"); !sys.Is(err, sys.Access) || !strings.Contains(err.Error(), "add ?sentinel-password=") {
		t.Errorf("without the Sentinels' password: %v", err)
	}
	s := open(t, w.URL(), "c")
	key := blocktest.Key(1, 0, 0)
	want := blocktest.Bytes(key, 300_000)
	patient := block.Retried(s, time.Minute)
	if err := patient.Put(t.Context(), key, want); err != nil {
		t.Fatal(err)
	}
	w.Master.Kill()
	w.AwaitFailover()
	if err := patient.Put(t.Context(), blocktest.Key(2, 0, 0), want); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if err := patient.Get(t.Context(), key, 0, got); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("after the failover: %v", err)
	}
}

// With replicas=1 a block counts when a replica has it, and so survives its
// master.
func TestReplicas(t *testing.T) {
	c := redistest.StartCluster(t)
	s := open(t, c.URL()+"?replicas=1", "c")
	patient := block.Retried(s, time.Minute)
	put := func(seq uint64) error {
		key := blocktest.Key(seq, 0, 0)
		return patient.Put(t.Context(), key, blocktest.Bytes(key, 200_000))
	}
	for seq := range uint64(30) {
		if err := put(seq + 1); err != nil {
			t.Fatal(err)
		}
	}
	if err := put(1); err != nil {
		t.Fatalf("the same block again: %v", err)
	}
	victim := c.Masters()[1]
	victim.Kill()
	done := make(chan error)
	go func() {
		var err error
		for seq := uint64(31); seq <= 60 && err == nil; seq++ {
			err = put(seq)
		}
		done <- err
	}()
	c.AwaitMasters(3)
	victim.Restart()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for seq := uint64(1); seq <= 60; seq++ {
		key, got := blocktest.Key(seq, 0, 0), make([]byte, 200_000)
		if err := patient.Get(t.Context(), key, 0, got); err != nil || !bytes.Equal(got, blocktest.Bytes(key, 200_000)) {
			t.Fatalf("%v: %v", key, err)
		}
	}
	alone := redistest.Start(t)
	one := open(t, alone.URL(0)+"?replicas=1", "c")
	if err := one.Put(t.Context(), blocktest.Key(1, 0, 0), []byte("x")); !sys.Is(err, sys.Unavailable) || !strings.Contains(err.Error(), "0 of 1 replicas") {
		t.Errorf("without replicas: %v", err)
	}
}

// The user that docs/operating/engines.md describes can do all, on a cluster
// too, and one with less is told.
func TestRights(t *testing.T) {
	const rights = "~koinon:* +hget +hset +hsetnx +hexists +select +get +set +unlink +scan +dbsize +info +wait +config|get +client|setname"
	run := func(t *testing.T, url string) {
		s := open(t, url, "c")
		if err := s.Claim(t.Context()); err != nil {
			t.Fatal(err)
		}
		all, err := s.Settings(t.Context())
		if err != nil || redis.Volatile(all) != nil || all[0].AppendOnly != "yes" || all[0].Fsync != "always" {
			t.Fatalf("%+v, %v", all, err)
		}
		key := blocktest.Key(1, 0, 0)
		for range 2 {
			if err := s.Put(t.Context(), key, []byte("x")); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.List(t.Context(), 0, sys.BlockKey{}, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Usage(t.Context()); err != nil {
			t.Fatal(err)
		}
		if has, err := s.Has(t.Context(), key); err != nil || !has {
			t.Fatal(err)
		}
		if err := s.Delete(t.Context(), []sys.BlockKey{key}); err != nil {
			t.Fatal(err)
		}
	}
	srv := redistest.Start(t)
	srv.CLI(append([]string{"ACL", "SETUSER", "koinon", "on", ">hush"}, strings.Fields(rights)...)...)
	srv.CLI("ACL", "SETUSER", "guest", "on", ">hush", "~other:*", "+get")
	run(t, fmt.Sprintf("redis://koinon:hush@%s/3", srv.Addr()))
	if _, err := tryOpen(t, fmt.Sprintf("redis://guest:hush@%s", srv.Addr()), "c"); !sys.Is(err, sys.Access) || !strings.Contains(err.Error(), "rights") {
		t.Errorf("a user without rights: %v", err)
	}
	t.Run("cluster", func(t *testing.T) {
		c := redistest.StartCluster(t)
		for _, s := range c.Servers {
			s.CLI(append([]string{"ACL", "SETUSER", "koinon", "on", ">hush", "+cluster"}, strings.Fields(rights)...)...)
		}
		run(t, fmt.Sprintf("redis+cluster://koinon:hush@%s?replicas=1", c.Servers[0].Addr()))
	})
}

// The certificate must be from the authority and for the name.
func TestTLS(t *testing.T) {
	cert, key := enginetest.Certificate(t, "redis.example")
	port := redistest.FreePort(t)
	redistest.Start(t, "--tls-port", fmt.Sprint(port), "--tls-auth-clients", "no", "--tls-cert-file", cert,
		"--tls-key-file", key, "--tls-ca-cert-file", cert)
	url := fmt.Sprintf("rediss://:%s@127.0.0.1:%d/0", redistest.Coded, port)
	s := open(t, url+"?server-name=redis.example&ca="+cert, "c")
	block := blocktest.Key(1, 0, 0)
	if err := s.Put(t.Context(), block, blocktest.Bytes(block, 300_000)); err != nil {
		t.Fatal(err)
	}
	for _, params := range []string{"", "?server-name=redis.example", "?ca=" + cert, "?server-name=other.example&ca=" + cert} {
		_, err := tryOpen(t, url+params, "c")
		for sys.Is(err, sys.Unavailable) && t.Context().Err() == nil { // the server is slow to shake hands while the disk is busy
			_, err = tryOpen(t, url+params, "c")
		}
		if !sys.Is(err, sys.Invalid) || !strings.Contains(err.Error(), "TLS: the server's certificate") {
			t.Errorf("%s: %v", params, err)
		}
	}
}
