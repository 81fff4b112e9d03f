package executor

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// idleMax is how many connections are kept for later calls.
const idleMax = 16

// calls are calls of the supervisor by HTTP. http.Client does the same with two goroutines for each connection, which pass every
// call on and its answer back: half of what a call takes. Methods may be called concurrently.
type calls struct {
	dial func(context.Context) (net.Conn, error)

	mu     sync.Mutex
	idle   []*conn // the last one used is the last one
	closed bool
}

// conn is a connection, with what was read of it and is not used yet.
type conn struct {
	net.Conn
	in *bufio.Reader
}

// post makes a call and decodes its answer. A connection that was kept may be one of a supervisor that has ended since: then
// another one is made.
func (c *calls) post(ctx context.Context, name string, body []byte, reply any) error {
	for {
		conn := c.kept()
		fresh := conn == nil
		if fresh {
			made, err := c.dial(ctx)
			if err != nil {
				return err
			}
			conn = newConn(made)
		}
		status, text, again, err := conn.post(ctx, name, body)
		if again {
			again = c.keep(conn)
		}
		if !again {
			err = errors.Join(err, conn.Close())
		}
		if err != nil && !fresh && ctx.Err() == nil {
			continue
		} else if err != nil {
			return err
		}
		if status == http.StatusOK {
			return json.Unmarshal(text, reply)
		}
		var f failure
		if json.Unmarshal(text, &f) != nil {
			return fmt.Errorf("the supervisor answers %d: %q", status, text)
		}
		return f.error()
	}
}

func newConn(c net.Conn) *conn { return &conn{Conn: c, in: bufio.NewReader(c)} }

// post makes one call, and tells whether the connection is good for another one.
func (c *conn) post(ctx context.Context, name string, body []byte) (status int, text []byte, again bool, err error) {
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) }) // fails only on a closed connection
	defer func() { again = stop() && again }()
	out := fmt.Appendf(nil, "POST %s%s HTTP/1.1\r\nHost: supervisor\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", wirePrefix, name, len(body), body)
	if _, err := c.Write(out); err != nil {
		return 0, nil, false, err
	}
	res, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return 0, nil, false, err
	}
	text, err = io.ReadAll(res.Body)
	err = errors.Join(err, res.Body.Close())
	return res.StatusCode, text, err == nil && !res.Close, err
}

// kept takes a connection that was kept, nil when there is none.
func (c *calls) kept() *conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := len(c.idle)
	if n == 0 {
		return nil
	}
	conn := c.idle[n-1]
	c.idle = c.idle[:n-1]
	return conn
}

// keep keeps a connection for the next call, if it is to be kept.
func (c *calls) keep(conn *conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || len(c.idle) >= idleMax {
		return false
	}
	c.idle = append(c.idle, conn)
	return true
}

// close closes the connections that are kept. Calls that run must have been ended.
func (c *calls) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	var err error
	for _, conn := range c.idle {
		err = errors.Join(err, conn.Close())
	}
	c.idle = nil
	return err
}
