package wire_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/koinon/koinon/internal/sys"
	"github.com/koinon/koinon/internal/wire"
	"github.com/koinon/koinon/internal/wire/wirepb"
)

// pattern fills a payload whose bytes depend on their place and on seed.
func pattern(n int, seed uint64) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(seed, uint64(n)))
	for i := 0; i+8 <= n; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], r.Uint64())
	}
	return b
}

func TestRoundTrip(t *testing.T) {
	w := newWorld(t, nil)
	c := w.client(nil)
	sizes := []int{0, 1, 100, 16 << 10, 32 << 10, 32<<10 + 1, 256<<10 - 1, 256 << 10, 256<<10 + 1, 1 << 20, 4 << 20, 4<<20 + 1, 16 << 20}
	for _, m := range []wire.Method{mEcho, mFast} {
		for _, h := range []int{0, 1, 1000, wire.MaxHeader} {
			for _, p := range sizes {
				if p > 1<<20 && h != 1000 {
					continue // large payloads take their time
				}
				header, payload := pattern(h, 1), pattern(p, 2)
				r, err := c.Call(context.Background(), m, header, payload)
				if err != nil {
					t.Fatalf("method %d, header %d, payload %d: %v", m, h, p, err)
				}
				if !bytes.Equal(r.Header, header) || !bytes.Equal(r.Payload, payload) {
					t.Fatalf("method %d, header %d, payload %d: other bytes came back", m, h, p)
				}
				r.Release()
				r.Release() // harmless
			}
		}
	}
}

func TestManyCallersShareAConnection(t *testing.T) {
	w := newWorld(t, nil)
	c := w.client(nil)
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 0))
			for n := range 30 {
				size := r.IntN(2000)
				if r.IntN(10) == 0 {
					size = r.IntN(1 << 20)
				}
				payload := pattern(size, uint64(i*1000+n))
				m := mEcho + wire.Method(r.IntN(2))
				reply, err := c.Call(context.Background(), m, nil, payload)
				if err != nil {
					t.Errorf("call: %v", err)
					return
				}
				if !bytes.Equal(reply.Payload, payload) {
					t.Errorf("caller %d got bytes that are not its own", i)
				}
				reply.Release()
			}
		})
	}
	wg.Wait()
}

func TestErrorsCrossWhole(t *testing.T) {
	w := newWorld(t, nil)
	c := w.client(nil)
	_, err := c.Call(context.Background(), mError, nil, []byte("map of epoch 7"))
	if want := "meta.Rename /a: replica.Propose: not the leader: ask n2"; err == nil || err.Error() != want {
		t.Errorf("error is %q, expected %q", err, want)
	}
	if !sys.Is(err, sys.NotLeader) {
		t.Errorf("kind is %v, expected %v", sys.KindOf(err), sys.NotLeader)
	}
	if d, ok := wire.DetailOf(err); !ok || string(d) != "map of epoch 7" {
		t.Errorf("detail is %q, %v", d, ok)
	}
	if wire.IsUnsent(err) {
		t.Error("an executed request is called unsent")
	}
}

func TestRefusals(t *testing.T) {
	w := newWorld(t, nil)
	c := w.client(nil)
	for _, tc := range []struct {
		name            string
		m               wire.Method
		header, payload int
		kind            sys.Kind
		unsent          bool
	}{
		{"unknown method", 99, 0, 0, sys.NotSupported, true},
		{"one-way method called", mOneWay, 0, 0, sys.NotSupported, true},
		{"header too large", mEcho, wire.MaxHeader + 1, 0, sys.Invalid, true},
		{"payload too large", mEcho, 0, wire.MaxPayload + 1, sys.Invalid, true},
		{"answer too large", mBad, 0, 0, sys.Other, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := c.Call(context.Background(), tc.m, make([]byte, tc.header), make([]byte, tc.payload))
			if !sys.Is(err, tc.kind) || wire.IsUnsent(err) != tc.unsent {
				t.Errorf("error is %v (kind %v, unsent %v), expected kind %v, unsent %v", err, sys.KindOf(err), wire.IsUnsent(err), tc.kind, tc.unsent)
			}
		})
	}
	if err := c.Send(mOneWay, nil, make([]byte, wire.MaxPayload+1)); !sys.Is(err, sys.Invalid) {
		t.Errorf("Send of a payload over the limit: %v", err)
	}
	if _, err := c.Call(context.Background(), mEcho, nil, nil); err != nil {
		t.Errorf("the connection does not work after refusals: %v", err)
	}
}

func expect(t *testing.T, ch <-chan string, want string) {
	t.Helper()
	select {
	case got := <-ch:
		if got != want {
			t.Fatalf("expected %q, found %q", want, got)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("expected %q, found nothing", want)
	}
}

func TestCancelReachesTheHandler(t *testing.T) {
	w := newWorld(t, nil)
	c := w.client(nil)
	for _, size := range []int{0, 1 << 20} {
		ctx, cancel := context.WithCancel(context.Background())
		failed := make(chan error, 1)
		go func() {
			_, err := c.Call(ctx, mHang, nil, make([]byte, size))
			failed <- err
		}()
		expect(t, w.hanging, "in")
		cancel()
		err := <-failed
		if !sys.Is(err, sys.Interrupted) || !errors.Is(err, context.Canceled) || wire.IsUnsent(err) {
			t.Errorf("canceled call: %v (kind %v)", err, sys.KindOf(err))
		}
		expect(t, w.hanging, "out")
	}
	if _, err := c.Call(context.Background(), mEcho, nil, nil); err != nil {
		t.Errorf("the connection does not work after a cancellation: %v", err)
	}
}

func TestDeadline(t *testing.T) {
	w := newWorld(t, nil)
	c := w.client(nil)
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	r, err := c.Call(ctx, mDeadline, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if d, err := time.ParseDuration(string(r.Payload)); err != nil || d > time.Hour || d < 50*time.Minute {
		t.Errorf("the handler sees %s left of an hour", r.Payload)
	}
	if r, err = c.Call(context.Background(), mDeadline, nil, nil); err != nil || len(r.Payload) != 0 {
		t.Errorf("a handler has a deadline that nobody set: %v", err)
	}

	ctx, cancel = context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	_, err = c.Call(ctx, mHang, nil, nil)
	if !sys.Is(err, sys.Unavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("call beyond its deadline: %v", err)
	}
	expect(t, w.hanging, "in")
	expect(t, w.hanging, "out")
	if _, err = c.Call(ctx, mEcho, nil, nil); !wire.IsUnsent(err) {
		t.Errorf("call after its deadline: %v, expected an unsent one", err)
	}
}

func TestOneWayKeepsOrder(t *testing.T) {
	w := newWorld(t, nil)
	c := w.client(func(cfg *wire.ClientConfig) { cfg.SendQueueBytes = 256 << 20 })
	if _, err := c.Call(context.Background(), mEcho, nil, nil); err != nil {
		t.Fatal(err)
	}
	const n = 3000
	for i := range n {
		size := 8
		if i%50 == 7 {
			size = 300 << 10 // travels in segments
		}
		payload := make([]byte, size)
		binary.LittleEndian.PutUint64(payload, uint64(i))
		if err := c.Send(mOneWay, nil, payload); err != nil {
			t.Fatal(err)
		}
		clear(payload) // it is ours again
	}
	for i := range n {
		select {
		case b := <-w.oneWay:
			if got := binary.LittleEndian.Uint64(b); got != uint64(i) {
				t.Fatalf("message %d came where %d was expected", got, i)
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("message %d did not come", i)
		}
	}
}

func TestSendNeverBlocks(t *testing.T) {
	w := newWorld(t, nil)
	c := w.client(func(cfg *wire.ClientConfig) { cfg.SendQueueBytes = 1000 })
	if err := c.Send(mOneWay, nil, nil); !sys.Is(err, sys.Unavailable) || !wire.IsUnsent(err) {
		t.Errorf("Send without a connection: %v", err)
	}
	if _, err := c.Call(context.Background(), mEcho, nil, nil); err != nil {
		t.Fatal(err)
	}
	if err := c.Send(mOneWay, nil, make([]byte, 1001)); !sys.Is(err, sys.Busy) || !wire.IsUnsent(err) {
		t.Errorf("Send into a full queue: %v", err)
	}
}

func TestCallsBeyondTheBudgetWait(t *testing.T) {
	w := newWorld(t, func(cfg *wire.ServerConfig) { cfg.MaxInFlight = 2 })
	c := w.client(nil)
	results := make(chan error, 3)
	call := func(ctx context.Context) {
		_, err := c.Call(ctx, mHang, nil, nil)
		results <- err
	}
	go call(context.Background())
	go call(context.Background())
	expect(t, w.hanging, "in")
	expect(t, w.hanging, "in")
	// The client knows the server's limit and waits.
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Millisecond)
	defer cancel()
	_, err := c.Call(ctx, mHang, nil, nil)
	if !sys.Is(err, sys.Unavailable) || !wire.IsUnsent(err) {
		t.Errorf("a call that found no room: %v", err)
	}
	go call(context.Background())
	close(w.release)
	for range 3 {
		if err := <-results; err != nil {
			t.Errorf("call: %v", err)
		}
	}
}

func TestBulkBeyondTheBudgetGetsThrough(t *testing.T) {
	// Requests and replies of 16 MiB, the least budget: everybody has to wait
	// for everybody else.
	w := newWorld(t, func(cfg *wire.ServerConfig) { cfg.MaxInFlightBytes = 1; cfg.MaxRunning = 3 })
	c := w.client(nil)
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			p := pattern(3<<20+i, uint64(i))
			for range 3 {
				r, err := c.Call(context.Background(), mEcho, nil, p)
				if err != nil {
					t.Errorf("call: %v", err)
					return
				}
				if !bytes.Equal(r.Payload, p) {
					t.Error("other bytes came back")
				}
				r.Release()
			}
		})
	}
	wg.Wait()
}

func TestMoreRequestsThanHandlers(t *testing.T) {
	w := newWorld(t, func(cfg *wire.ServerConfig) { cfg.MaxRunning = 2 })
	c := w.client(nil)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if _, err := c.Call(context.Background(), mHang, nil, nil); err != nil {
				t.Errorf("call: %v", err)
			}
		})
	}
	expect(t, w.hanging, "in")
	expect(t, w.hanging, "in")
	// A queued request that is canceled never reaches a handler; fast methods
	// do not queue.
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := c.Call(ctx, mError, nil, nil); !sys.Is(err, sys.Unavailable) {
		t.Errorf("queued call: %v", err)
	}
	if _, err := c.Call(context.Background(), mFast, nil, nil); err != nil {
		t.Errorf("fast call: %v", err)
	}
	select {
	case s := <-w.hanging:
		t.Errorf("a third handler said %q", s)
	default:
	}
	close(w.release)
	wg.Wait()
}

func TestTypedCalls(t *testing.T) {
	w := newWorld(t, nil)
	c := w.client(nil)
	for _, size := range []int{0, 10, 4000, 200 << 10} {
		req := &wirepb.Error{Text: string(bytes.Repeat([]byte("x"), size))}
		resp := &wirepb.Error{}
		if err := wire.Invoke(context.Background(), c, mProto, req, resp); err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf("node n2 says %d", size); resp.GetOp() != want || len(resp.GetText()) != size {
			t.Errorf("answer is %q with %d bytes, expected %q", resp.GetOp(), len(resp.GetText()), want)
		}
	}
	if err := wire.Invoke(context.Background(), c, mProto, &wirepb.Error{Kind: 1}, &wirepb.Error{}); !sys.Is(err, sys.Exist) {
		t.Errorf("error of a typed handler: %v", err)
	}
	if _, err := c.Call(context.Background(), mProto, []byte{0xff}, nil); !sys.Is(err, sys.Invalid) {
		t.Errorf("a header that is no protobuf: %v", err)
	}
}
