//go:build linux

package executor

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestCalls has a connection kept while it is good for another call, and no longer.
func TestCalls(t *testing.T) {
	var conns atomic.Int32
	asked := make(chan struct{}, 1)
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case strings.HasSuffix(r.URL.Path, "/wait"):
			asked <- struct{}{}
			<-r.Context().Done()
		case strings.HasSuffix(r.URL.Path, "/last"):
			w.Header().Set("Connection", "close")
			fallthrough
		default:
			_, _ = w.Write([]byte("7"))
		}
	}))
	srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			conns.Add(1)
		}
	}
	srv.Start()
	defer srv.Close()
	c := &calls{dial: func(ctx context.Context) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "tcp", srv.Listener.Addr().String())
	}}
	call := func(name string, want int32) {
		t.Helper()
		var reply int
		if err := c.post(t.Context(), name, []byte("{}"), &reply); err != nil || reply != 7 {
			t.Fatalf("%s: found %d, %v", name, reply, err)
		}
		if n := conns.Load(); n != want {
			t.Fatalf("%s: %d connections expected so far, found %d", name, want, n)
		}
	}
	call("now", 1)
	call("now", 1)

	ctx, cancel := context.WithCancel(t.Context())
	var waits sync.WaitGroup
	waits.Go(func() {
		var reply int
		if err := c.post(ctx, "wait", nil, &reply); err == nil {
			t.Error("a call whose context ended was answered")
		}
	})
	<-asked
	cancel()
	waits.Wait()
	call("now", 2)
	call("last", 2)
	call("now", 3)

	srv.CloseClientConnections() // as when the supervisor dies
	call("now", 4)

	if err := c.close(); err != nil {
		t.Fatal(err)
	}
	call("now", 5)
	call("now", 6)

	ended, end := context.WithDeadline(t.Context(), time.Unix(1, 0))
	defer end()
	if err := c.post(ended, "now", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("a call after its time: %v", err)
	}
}
