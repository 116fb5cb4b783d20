package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestHugeFilesOfContainersAreNotRead: what a container writes as its
// termination message may be larger than the machine's memory.
func TestHugeFilesOfContainersAreNotRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "termination")
	if err := os.WriteFile(path, []byte(strings.Repeat("x", maxTermination-1)+"\xff"), 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 1<<40); err != nil { // sparse
		t.Fatal(err)
	}
	if got, want := head(path, maxTermination), strings.Repeat("x", maxTermination-1)+"?"; got != want {
		t.Errorf("read %d bytes, want %d", len(got), len(want))
	}
	if err := writeFile(path, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	if got := head(path, maxTermination); got != "" {
		t.Errorf("still %d bytes", len(got))
	}
}
