package meta_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metapb"
	"github.com/koinon/koinon/internal/sys"
)

func create(b *testing.B, m *meta.Memory, i int) {
	_, err := m.Do(context.Background(), &metapb.Command{Op: &metapb.Command_Mknod{Mknod: &metapb.Mknod{
		Parent: uint64(sys.RootIno), Name: fmt.Appendf(nil, "file-%08d", i), Type: uint32(sys.TypeRegular), Mode: 0o644,
	}}})
	if err != nil {
		b.Fatal(err)
	}
}

func BenchmarkCreate(b *testing.B) {
	m := meta.NewMemory()
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		create(b, m, i)
	}
}

func BenchmarkLookup(b *testing.B) {
	m := meta.NewMemory()
	for i := range 100_000 {
		create(b, m, i)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		_, err := m.Query(context.Background(), &metapb.Query{Op: &metapb.Query_Lookup{Lookup: &metapb.Lookup{
			Parent: uint64(sys.RootIno), Name: fmt.Appendf(nil, "file-%08d", i%100_000),
		}}})
		if err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkReadDir measures a page of 1024 entries with attributes.
func BenchmarkReadDir(b *testing.B) {
	m := meta.NewMemory()
	for i := range 10_000 {
		create(b, m, i)
	}
	b.ReportAllocs()
	for b.Loop() {
		_, err := m.Query(context.Background(), &metapb.Query{Op: &metapb.Query_ReadDir{ReadDir: &metapb.ReadDir{
			Ino: uint64(sys.RootIno), After: 5000, Limit: 1024, Attrs: true,
		}}})
		if err != nil {
			b.Fatal(err)
		}
	}
}
