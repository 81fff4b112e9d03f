package koinon

import (
	"context"
	"errors"
	"io"
	"io/fs"

	"github.com/koinon/koinon/internal/proc"
	"github.com/koinon/koinon/internal/proc/procpb"
	"github.com/koinon/koinon/internal/sys"
)

// Logs passes what the processes that name means have written by now to out,
// one process after the other: by index, by rank, standard output first. What
// runs is asked at its node, the rest is in the tree.
func (p *Procs) Logs(ctx context.Context, name string, out func(Chunk) error) error {
	n, err := proc.ParseName(name)
	if err != nil {
		return err
	}
	r, err := p.c.Inspect(ctx, &procpb.InspectRequest{Job: n.Job, Indices: indices(n)})
	if err != nil {
		return err
	}
	f := &follow{p: p, opt: FollowOptions{Output: out}, name: n, spec: r.Spec, calls: make(chan struct{}, 1)}
	if err := f.check(); err != nil {
		return err
	}
	var cut error
	for _, t := range r.Tasks {
		for rank, q := range t.Procs {
			if n.Rank >= 0 && rank != n.Rank {
				continue
			}
			y := try{index: t.Index, rank: uint32(rank), epoch: t.Epoch, node: sys.NodeID(q.Node)}
			if err := f.sofar(ctx, y, proc.Over(q.State)); err != nil {
				return err
			}
			if q.Cut != "" && cut == nil {
				cut = sys.E(sys.Op("koinon.Logs"), sys.NoSpace, sys.Subject("job "+f.chunk(y).Process), q.Cut)
			}
		}
	}
	return cut
}

// sofar passes on what a process has written by now.
func (f *follow) sofar(ctx context.Context, y try, ended bool) error {
	req := &procpb.OutputRequest{Job: f.name.Job, Index: y.index, Rank: y.rank, Epoch: y.epoch}
	for !ended {
		r, err := f.ask(ctx, y.node, req)
		if err != nil && !away(err) || ctx.Err() != nil {
			return err
		}
		if err != nil || r.Gone {
			break
		}
		if err := f.tell(y, req, r); err != nil || r.Final {
			return err
		}
		if len(r.Stdout) == 0 && len(r.Stderr) == 0 {
			return f.end(y)
		}
	}
	return f.rest(ctx, y, req)
}

// file passes on what a file of the tree holds from an offset on; nothing when
// there is no such file.
func (p *Procs) file(ctx context.Context, name string, from int64, out func([]byte) error) error {
	tree, err := p.Tree(ctx)
	if err != nil {
		return err
	}
	f, err := tree.Open(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	_, err = io.Copy(writer(out), io.NewSectionReader(f, from, maxLength))
	return errors.Join(err, f.Close())
}

// maxLength is longer than any file.
const maxLength = 1 << 60

// writer makes an io.Writer of a function.
type writer func([]byte) error

func (w writer) Write(b []byte) (int, error) {
	if err := w(b); err != nil {
		return 0, err
	}
	return len(b), nil
}
