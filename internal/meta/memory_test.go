package meta_test

import (
	"testing"

	"github.com/koinon/koinon/internal/meta"
	"github.com/koinon/koinon/internal/meta/metatest"
)

func TestMemoryClient(t *testing.T) {
	metatest.Run(t, func(*testing.T) meta.Client { return meta.NewMemory(meta.Unformatted()) })
}

func TestMemoryEngine(t *testing.T) {
	metatest.RunTx(t, func(*testing.T) meta.Tx { return meta.NewMemory(meta.Unformatted()) })
}
