package executor

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"

	"github.com/koinon/koinon/internal/sys"
)

// Output reads one output of a process, while it runs and after. Methods may be called concurrently.
type Output struct {
	x      *Executor
	id     ID
	stream Stream
}

// Output returns an output of a process. It needs no closing.
func (x *Executor) Output(id ID, stream Stream) *Output { return &Output{x, id, stream} }

// Path is the file that holds the output, at the offsets of the stream. There is none before the first byte. Below
// Spool.Acked it may have holes.
func (o *Output) Path() string { return spoolPath(o.x.dir, o.id, o.stream.suffix()) }

// State returns how far the output is. A process that is not known is sys.NotExist.
func (o *Output) State(ctx context.Context) (Spool, error) { return o.Wait(ctx, -1) }

// Wait returns when the output is larger than size bytes, or final.
func (o *Output) Wait(ctx context.Context, size int64) (Spool, error) {
	return call[Spool](ctx, o.x, callOutput, outputRequest{o.id, o.stream, size})
}

// ReadAt reads bytes of the stream. What is below Spool.Acked may read as zeroes; what is not there yet, or never
// will be, is io.EOF.
func (o *Output) ReadAt(p []byte, off int64) (int, error) {
	f, err := os.Open(o.Path())
	if errors.Is(err, fs.ErrNotExist) {
		return 0, io.EOF
	} else if err != nil {
		return 0, sys.E(sys.Op("executor.ReadAt"), err)
	}
	n, err := f.ReadAt(p, off)
	if cerr := f.Close(); cerr != nil {
		return n, cerr
	}
	return n, err // io.EOF bare, as readers compare it
}

// Ack says that all before an offset is kept elsewhere, so that its space can be used again. A lower offset than an
// earlier one changes nothing; one beyond the size is sys.Invalid.
func (o *Output) Ack(ctx context.Context, offset int64) error {
	_, err := call[struct{}](ctx, o.x, callAck, ackRequest{o.id, o.stream, offset})
	return err
}

var _ io.ReaderAt = (*Output)(nil)
