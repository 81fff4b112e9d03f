package test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"testing"
	"time"

	"github.com/koinon/koinon"
)

// kv opens the cluster's keys as a Go program does.
func (d *dev) kv() *koinon.KV {
	d.t.Helper()
	kv, err := koinon.OpenKV(d.t.Context(), koinon.Options{Config: d.at("client.toml")})
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := kv.Close(ctx); err != nil {
			d.t.Errorf("leaving the cluster: %v", err)
		}
	})
	return kv
}

// is fails the test unless err is one of the kind wanted.
func is(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("expected the error %v, found %v", want, err)
	}
}

// TestKeysFromGo tries what Go programs have beyond the command line.
func TestKeysFromGo(t *testing.T) {
	d := up(t, 1)
	ctx, kv := t.Context(), d.kv()
	_, err := kv.Get(ctx, "none", koinon.ReadOptions{})
	is(t, err, fs.ErrNotExist)
	_, err = kv.Delete(ctx, "none")
	is(t, err, fs.ErrNotExist)
	_, err = kv.Put(ctx, "", nil)
	is(t, err, fs.ErrInvalid)
	_, err = kv.Watch(koinon.WatchOptions{}).Next(ctx) // of all keys it would have a prefix
	is(t, err, fs.ErrInvalid)

	s, err := kv.NewSession(ctx, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	first, err := s.Commit(ctx, koinon.Txn{If: []koinon.Condition{koinon.Absent("member/a")},
		Then: []koinon.Change{koinon.PutEphemeral("member/a", []byte("here")), koinon.Put("config", []byte{0, 0xff})}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = kv.Commit(ctx, koinon.Txn{If: []koinon.Condition{koinon.Absent("member/a")}, Then: []koinon.Change{koinon.Put("config", nil)}})
	is(t, err, koinon.ErrMismatch)
	if m, ok := errors.AsType[*koinon.MismatchError](err); !ok || m.Found["member/a"] != first {
		t.Errorf("found %v", err)
	}
	if e, err := kv.Get(ctx, "config", koinon.ReadOptions{}); err != nil || string(e.Value) != "\x00\xff" || e.Revision != first {
		t.Errorf("found %v, %v", e, err)
	}

	l, err := s.Lock(ctx, "l", koinon.LockOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = kv.Lock(ctx, "l", koinon.LockOptions{Try: true})
	is(t, err, koinon.ErrLocked)
	guarded := koinon.Txn{If: []koinon.Condition{koinon.StillLocked("l", l.Fence)}, Then: []koinon.Change{koinon.Put("guarded", nil)}}
	if _, err := kv.Commit(ctx, guarded); err != nil {
		t.Errorf("a change under a lock that is held: %v", err)
	}
	locks, next, err := kv.Locks(ctx, "", "")
	if err != nil || next != "" || len(locks) != 1 || locks[0].Name != "l" || locks[0].Fence != l.Fence || locks[0].Session != s.ID() {
		t.Errorf("found %v, %v", locks, err)
	}
	if err := s.Close(ctx); err != nil {
		t.Fatal(err)
	}
	is(t, l.Err(), koinon.ErrSessionLost)
	_, err = kv.Commit(ctx, guarded)
	is(t, err, koinon.ErrMismatch)
	_, err = kv.Get(ctx, "member/a", koinon.ReadOptions{})
	is(t, err, fs.ErrNotExist)
	again, err := kv.Lock(ctx, "l", koinon.LockOptions{TTL: 2 * time.Second})
	if err != nil || again.Fence <= l.Fence {
		t.Fatalf("token %v after %d: %v", again, l.Fence, err)
	}
	if err := again.Unlock(ctx); err != nil {
		t.Error(err)
	}
	watchFromGo(t, kv, first)
}

// watchFromGo sees a key come and go with its session.
func watchFromGo(t *testing.T, kv *koinon.KV, first uint64) {
	t.Helper()
	w := kv.Watch(koinon.WatchOptions{Key: "member/", Prefix: true, From: first})
	var seen []string
	for e, err := range w.Events(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		seen = append(seen, fmt.Sprint(e.Key, e.Deleted, string(e.Value)))
		if e.Deleted {
			break
		}
	}
	if got := fmt.Sprint(seen); got != "[member/afalsehere member/atrue]" {
		t.Errorf("the watch saw %s", got)
	}
	if w.Revision() <= first {
		t.Errorf("the watch has come to %d from %d", w.Revision(), first)
	}
}

// TestUnknownOutcome takes the majority away: a change that was on its way has
// an unknown outcome, a read has none, and a lock is known to be lost in time.
func TestUnknownOutcome(t *testing.T) {
	d := up(t, 3)
	ctx, kv := t.Context(), d.kv()
	if _, err := kv.Put(ctx, "k", []byte("before")); err != nil {
		t.Fatal(err)
	}
	const ttl = 2 * time.Second
	lock, err := kv.Lock(ctx, "l", koinon.LockOptions{TTL: ttl})
	if err != nil {
		t.Fatal(err)
	}
	leader := d.leader()
	others := []int{leader%3 + 1, (leader+1)%3 + 1}
	for _, n := range others {
		d.kill(n)
	}
	short, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	_, err = kv.Put(short, "k", []byte("perhaps"))
	is(t, err, koinon.ErrUnknown)
	if e, err := kv.Get(ctx, "k", koinon.ReadOptions{Stale: true}); err != nil || string(e.Value) != "before" {
		t.Errorf("a stale read without a majority: %v, %v", e, err)
	}
	select {
	case <-lock.Lost():
	case <-time.After(2 * ttl):
		t.Error("a lock is still thought to be held")
	}
	if lock.Left() != 0 {
		t.Errorf("a lost lock has %v left", lock.Left())
	}
	for _, n := range others {
		d.restart(n)
	}
	e, err := kv.Get(ctx, "k", koinon.ReadOptions{})
	if err != nil || string(e.Value) != "before" && string(e.Value) != "perhaps" || e.Version > 2 {
		t.Errorf("found %v, %v", e, err)
	}
	if err := lock.Unlock(ctx); err != nil {
		t.Error(err)
	}
}
