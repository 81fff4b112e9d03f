package embedded

import (
	"context"
	"fmt"
	"testing"

	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/pb"
	"github.com/koinon/koinon/internal/rsm"
	"github.com/koinon/koinon/internal/sys"
)

// benchTree is a formatted tree on a Store in memory, and a way to run commands
// on it as the log would.
func benchTree(b *testing.B) (f *fake, do func(cmd *metapb.Command) *metapb.Result) {
	b.Helper()
	f = newFake()
	now := int64(0)
	do = func(cmd *metapb.Command) *metapb.Result {
		body := pb.Marshal(cmd)
		now++
		out, _ := apply(f, rsm.Stamp{TimeNs: now}, body)
		res := &metapb.Result{}
		if err := pb.Unmarshal(out, res); err != nil || res.Failure != nil {
			b.Fatal(err, res)
		}
		return res
	}
	do(&metapb.Command{Op: &metapb.Command_Format{Format: &metapb.Format{}}})
	return f, do
}

func create(i int) *metapb.Command {
	return &metapb.Command{Cred: &metapb.Cred{}, Op: &metapb.Command_Mknod{Mknod: &metapb.Mknod{
		Parent: uint64(sys.RootIno), Name: fmt.Appendf(nil, "file-%08d", i), Type: uint32(sys.TypeRegular), Mode: 0o644,
	}}}
}

// BenchmarkCreate measures decoding, rules, rows and encoding of a create.
func BenchmarkCreate(b *testing.B) {
	_, do := benchTree(b)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		do(create(i))
	}
}

func BenchmarkUnlink(b *testing.B) {
	_, do := benchTree(b)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		do(create(i))
		b.StartTimer()
		do(&metapb.Command{Op: &metapb.Command_Unlink{
			Unlink: &metapb.Unlink{Parent: uint64(sys.RootIno), Name: fmt.Appendf(nil, "file-%08d", i)},
		}})
	}
}

// BenchmarkCommit measures a slice that is reserved and committed.
func BenchmarkCommit(b *testing.B) {
	_, do := benchTree(b)
	ino := do(create(0)).Attr.Ino
	b.ReportAllocs()
	for b.Loop() {
		seq := do(&metapb.Command{Op: &metapb.Command_AllocSlices{
			AllocSlices: &metapb.AllocSlices{Count: 1, Session: 1},
		}}).FirstSlice
		do(&metapb.Command{Op: &metapb.Command_Commit{Commit: &metapb.Commit{Ino: ino, Slices: []*metapb.ChunkSlice{{
			Slice: &metapb.Slice{Len: 4096, Slice: uint64(sys.NewSliceID(seq, 1)), SliceLen: 4096},
		}}}}})
	}
}

func query(b *testing.B, f *fake, q *metapb.Query) *metapb.Answer {
	ans, err := Read(f, q)
	if err != nil || ans.Failure != nil {
		b.Fatal(err, ans)
	}
	return ans
}

func BenchmarkLookup(b *testing.B) {
	f, do := benchTree(b)
	for i := range 100_000 {
		do(create(i))
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		query(b, f, &metapb.Query{Op: &metapb.Query_Lookup{Lookup: &metapb.Lookup{
			Parent: uint64(sys.RootIno), Name: fmt.Appendf(nil, "file-%08d", i%100_000),
		}}})
	}
}

// BenchmarkReadDir measures a page of 1024 entries, with and without
// attributes.
func BenchmarkReadDir(b *testing.B) {
	for _, attrs := range []bool{false, true} {
		b.Run(fmt.Sprintf("attrs=%v", attrs), func(b *testing.B) {
			f, do := benchTree(b)
			for i := range 10_000 {
				do(create(i))
			}
			b.ReportAllocs()
			for b.Loop() {
				query(b, f, &metapb.Query{Op: &metapb.Query_ReadDir{ReadDir: &metapb.ReadDir{
					Ino: uint64(sys.RootIno), After: 5000, Limit: 1024, Attrs: attrs,
				}}})
			}
		})
	}
}

// BenchmarkReplicatedCreate measures creates by 64 callers through the log of
// one replica in memory, each waiting for its answer.
func BenchmarkReplicatedCreate(b *testing.B) {
	c := &client{openGroup(b)}
	ctx := context.Background()
	if _, err := c.Do(ctx, &metapb.Command{Op: &metapb.Command_Format{Format: &metapb.Format{}}}); err != nil {
		b.Fatal(err)
	}
	names := make(chan int)
	done := make(chan error, 64)
	for range 64 {
		go func() {
			for i := range names {
				if _, err := c.Do(ctx, create(i)); err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		names <- i
	}
	close(names)
	for range 64 {
		if err := <-done; err != nil {
			b.Fatal(err)
		}
	}
}
