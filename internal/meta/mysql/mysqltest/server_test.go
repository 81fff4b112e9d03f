package mysqltest

import (
	"os"
	"path/filepath"
	"testing"
)

// A server that starts removes the temporary tables in its directory for them.
// It must not find those of a server that another test runs.
func TestServersLeaveEachOthersTemporaryTables(t *testing.T) {
	shared := t.TempDir()
	t.Setenv("TMPDIR", shared)
	other := filepath.Join(shared, "#sql-temptable-fdc-1-3.MAI")
	if err := os.WriteFile(other, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	Start(t)
	if _, err := os.Stat(other); err != nil {
		t.Fatal(err)
	}
}
