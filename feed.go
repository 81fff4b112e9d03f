package koinon

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/koinon/koinon/internal/proc/procpb"
)

// feedUnit is how much input is read at a time, in bytes.
const feedUnit = 64 << 10

// feed sends the input to a process until either ends.
func (f *follow) feed(ctx context.Context, y try, in io.Reader) error {
	pieces := readPieces(ctx, in)
	req := &procpb.StdinRequest{Job: f.name.Job, Index: y.index, Rank: y.rank, Epoch: y.epoch}
	for {
		select {
		case <-ctx.Done():
			return nil
		case piece := <-pieces:
			if closed, err := f.send(ctx, y, req, piece.data); closed || err != nil {
				return err
			}
			if errors.Is(piece.err, io.EOF) {
				req.End = true
				_, err := f.send(ctx, y, req, nil)
				return err
			} else if piece.err != nil {
				return piece.err
			}
		}
	}
}

type piece struct {
	data []byte
	err  error
}

// readPieces reads in the background, as nothing interrupts a read of a
// terminal or a pipe. The goroutine ends with the input, or with its next bytes
// after ctx has ended.
func readPieces(ctx context.Context, in io.Reader) <-chan piece {
	pieces := make(chan piece)
	go func() {
		for {
			b := make([]byte, feedUnit)
			n, err := in.Read(b)
			select {
			case pieces <- piece{b[:n], err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	return pieces
}

// send has a piece of input taken by the process's node, however often it has
// to be asked. closed says that nobody reads any more.
func (f *follow) send(ctx context.Context, y try, req *procpb.StdinRequest, data []byte) (closed bool, err error) {
	if len(data) == 0 && !req.End {
		return false, nil
	}
	for pause := pauseLeast; ; pause = min(2*pause, pauseMost) {
		r, err := f.p.c.Stdin(ctx, y.node, req, data)
		switch {
		case ctx.Err() != nil:
			return true, nil
		case err != nil && !away(err):
			return false, err
		case err == nil && r.Closed:
			return true, nil
		case err == nil:
			taken := r.Offset - req.Offset
			if taken < 0 || taken > int64(len(data)) {
				taken = 0
			}
			req.Offset += taken
			if data = data[taken:]; len(data) == 0 {
				return false, nil
			}
			if taken > 0 {
				pause = pauseLeast
			}
		}
		if ended, _, _ := f.state(y); ended {
			return true, nil
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}
