package remote

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/wire"
)

// soleDir gives session 1 the directory 20 to itself.
func soleDir(t *testing.T, l *leases) {
	t.Helper()
	l.grant(7, 1, seenAt{slot: 5}, []sys.Ino{20})
	if got := l.grantSole(7, 1, []uint64{20}); len(got) != 1 {
		t.Fatalf("a directory that only one session uses was not granted")
	}
}

// enters says whether a session's request gets to use dir before it is given
// back.
func enters(t *testing.T, l *leases, session sys.SessionID, dir sys.Ino) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	leave, err := l.enter(ctx, 7, session, []sys.Ino{dir})
	if err == nil {
		leave()
	}
	return err == nil
}

// answered renews a session's lease without being held.
func answered(l *leases, s sys.SessionID, acked uint64, owes bool) renewal {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return l.renew(ctx, s, 7, acked, owes)
}

func TestASoleDirectoryIsAskedBack(t *testing.T) {
	l, clock := leading(t)
	join(t, l, 1)
	join(t, l, 2)
	soleDir(t, l)
	if !enters(t, l, 1, 20) {
		t.Error("the session may not use its own directory")
	}
	if got, _ := l.grant(7, 2, seenAt{slot: 9}, []sys.Ino{20}); len(got) != 0 {
		t.Error("another session may cache what it did not ask for")
	}
	if enters(t, l, 2, 20) {
		t.Fatal("another session used the directory before it was given back")
	}
	n := answered(l, 1, 0, false)
	if len(n.inos) != 1 || n.inos[0] != 20 {
		t.Fatalf("the renewal brought %+v", n)
	}
	if enters(t, l, 2, 20) {
		t.Fatal("another session used the directory before that was confirmed")
	}
	if got := l.grantSole(7, 1, []uint64{20}); len(got) != 0 {
		t.Error("granted while it is asked back")
	}
	answered(l, 1, n.seq, false)
	if !enters(t, l, 2, 20) {
		t.Fatal("another session waits although the directory was given back")
	}
	l.grant(7, 1, seenAt{slot: 9}, []sys.Ino{20})
	if got := l.grantSole(7, 1, []uint64{20}); len(got) != 0 {
		t.Error("granted again at once: two sessions that take turns would wait for each other each time")
	}
	clock.boot += soleRest
	if got := l.grantSole(7, 1, []uint64{20}); len(got) != 1 {
		t.Error("not granted again after a rest")
	}
}

func TestOnlyAnUnusedDirectoryIsSole(t *testing.T) {
	l, _ := leading(t)
	join(t, l, 1)
	join(t, l, 2)
	if got := l.grantSole(7, 1, []uint64{20}); len(got) != 0 {
		t.Error("granted to a session that has no lease on it")
	}
	l.grant(7, 1, seenAt{slot: 5}, []sys.Ino{20})
	leave, err := l.enter(t.Context(), 7, 2, []sys.Ino{20})
	if err != nil {
		t.Fatal(err)
	}
	if got := l.grantSole(7, 1, []uint64{20}); len(got) != 0 {
		t.Error("granted while another session's request is under way")
	}
	mine, err := l.enter(t.Context(), 7, 1, []sys.Ino{20})
	if err != nil {
		t.Fatal(err)
	}
	leave()
	if got := l.grantSole(7, 1, []uint64{20}); len(got) != 0 {
		t.Error("who came first is not told from who is left")
	}
	mine()
	l.grant(7, 2, seenAt{slot: 5}, []sys.Ino{20})
	if got := l.grantSole(7, 1, []uint64{20}); len(got) != 0 {
		t.Error("granted while another session caches it")
	}
	if len(l.uses) != 0 {
		t.Errorf("uses are left: %v", l.uses)
	}
}

func TestIdleDirectoriesAreAskedBackTogether(t *testing.T) {
	l, clock := leading(t)
	join(t, l, 1)
	join(t, l, 2)
	for _, dir := range []sys.Ino{20, 21, 22} {
		l.grant(7, 1, seenAt{slot: 5}, []sys.Ino{dir})
		if len(l.grantSole(7, 1, []uint64{uint64(dir)})) != 1 {
			t.Fatal("not granted")
		}
	}
	clock.boot += soleIdle
	l.grantSole(7, 1, []uint64{22}) // still in use
	if enters(t, l, 2, 20) {
		t.Fatal("did not wait")
	}
	n := answered(l, 1, 0, false)
	if len(n.inos) != 2 {
		t.Fatalf("asked back: %v, expected 20 and 21", n.inos)
	}
	answered(l, 1, n.seq, false)
	if !enters(t, l, 2, 21) || enters(t, l, 2, 22) {
		t.Error("21 expected to be free and 22 not")
	}
}

func TestAMountThatDoesNotAnswerLosesItsDirectories(t *testing.T) {
	l, clock := leading(t)
	join(t, l, 1)
	join(t, l, 2)
	soleDir(t, l)
	if enters(t, l, 2, 20) {
		t.Fatal("did not wait")
	}
	clock.boot += Term + drift
	if !enters(t, l, 2, 20) {
		t.Fatal("waits for ever")
	}
	if n := answered(l, 1, 0, false); !n.reset {
		t.Error("the session was not told that it has lost everything")
	}
}

func TestALeaderWaitsForEarlierPromises(t *testing.T) {
	l, clock := leading(t, 1, 2)
	cleared := func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Millisecond)
		defer cancel()
		return l.clear(ctx, 7) == nil
	}
	settled := func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Millisecond)
		defer cancel()
		return l.settle(ctx, 7) == nil
	}
	join(t, l, 2)
	l.renew(t.Context(), 1, 0, 0, false)
	if n := l.renew(t.Context(), 1, 7, 0, true); n.reset {
		t.Fatalf("answered %+v", n)
	}
	if !settled() {
		t.Error("nobody caches anything, but the command that keeps a promise would wait")
	}
	if cleared() {
		t.Error("others do not wait for what was promised")
	}
	answered(l, 1, 0, false)
	if !cleared() {
		t.Error("others wait although all promises were kept")
	}
	l.lead(7, []sys.SessionID{1})
	clock.boot += Term + drift
	if !cleared() {
		t.Error("others wait for ever")
	}
}

func TestTheEndOfALeadershipEndsTheWait(t *testing.T) {
	l, _ := leading(t)
	join(t, l, 1)
	soleDir(t, l)
	failed := make(chan error, 1)
	began := make(chan struct{})
	go func() {
		close(began)
		_, err := l.enter(t.Context(), 7, 2, []sys.Ino{20})
		failed <- err
	}()
	<-began
	for {
		l.mu.Lock()
		asked := l.soles[20].recall != nil
		l.mu.Unlock()
		if asked {
			break
		}
	}
	l.follow()
	if err := <-failed; !sys.Is(err, sys.NotLeader) {
		t.Errorf("%v, expected NotLeader", err)
	}
}

// TestRequestsWaitForEarlierPromises: a new leader runs nothing that may find
// or take a name which a session has promised to make under the last one, but
// the commands that make it.
func TestRequestsWaitForEarlierPromises(t *testing.T) {
	group := oneVoter(t, "127.0.0.1:1")
	s := NewServer(ServerOptions{Group: group, Clock: &fakeClock{boot: time.Hour}, Logger: slog.New(slog.DiscardHandler)})
	t.Cleanup(s.Close)
	term := must(s.lead(t.Context(), "test"))
	s.leases.lead(term, []sys.SessionID{1})
	mknod := func(ino uint64) error {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		leave, err := s.enter(ctx, term, 2, &metapb.Command{Op: &metapb.Command_Mknod{Mknod: &metapb.Mknod{Parent: 1, Name: []byte("f"), Ino: ino}}})
		if err == nil {
			leave()
		}
		return err
	}
	look := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		q := pb.Marshal(&metapb.Query{Op: &metapb.Query_Lookup{Lookup: &metapb.Lookup{Parent: 1, Name: []byte("f")}}})
		_, err := s.serveQuery(ctx, &wire.Request{Payload: q})
		return err
	}
	join1 := func(owes bool) {
		s.leases.renew(t.Context(), 1, 0, 0, false)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		s.leases.renew(ctx, 1, term, 0, owes)
	}
	join1(true)
	if mknod(0) == nil || look() == nil {
		t.Error("a request did not wait for promises of another session")
	}
	if err := mknod(17); err != nil {
		t.Errorf("a command that keeps a promise: %v", err)
	}
	join1(false)
	if err := errors.Join(mknod(0), look()); err != nil {
		t.Errorf("after all promises were kept: %v", err)
	}
}

// TestASoleDirectoryIsNotTakenAway: a command that may remove the directory, or
// replace it, names only its parent.
func TestASoleDirectoryIsNotTakenAway(t *testing.T) {
	group := oneVoter(t, "127.0.0.1:1")
	s := NewServer(ServerOptions{Group: group, Clock: &fakeClock{boot: time.Hour}, Logger: slog.New(slog.DiscardHandler)})
	t.Cleanup(s.Close)
	term := must(s.lead(t.Context(), "test"))
	dir := must(s.Do(t.Context(), &metapb.Command{Op: &metapb.Command_Mknod{Mknod: &metapb.Mknod{
		Parent: 1, Name: []byte("d"), Type: uint32(sys.TypeDir), Mode: 0o755}}})).Attr.Ino
	s.leases.renew(t.Context(), 1, 0, 0, false)
	s.leases.grant(term, 1, seenAt{slot: 1 << 40}, []sys.Ino{sys.Ino(dir)})
	if len(s.leases.grantSole(term, 1, []uint64{dir})) != 1 {
		t.Fatal("not granted")
	}
	for _, cmd := range []*metapb.Command{
		{Op: &metapb.Command_Rmdir{Rmdir: &metapb.Rmdir{Parent: 1, Name: []byte("d")}}},
		{Op: &metapb.Command_Rename{Rename: &metapb.Rename{Parent: 1, Name: []byte("e"), NewParent: 1, NewName: []byte("d")}}},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		if leave, err := s.enter(ctx, term, 2, cmd); err == nil {
			leave()
			t.Errorf("%v did not wait for the session that has the directory to itself", cmd)
		}
		cancel()
		leave, err := s.enter(t.Context(), term, 1, cmd)
		if err != nil {
			t.Fatalf("the session itself: %v", err)
		}
		leave()
	}
}
