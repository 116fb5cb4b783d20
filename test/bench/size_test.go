//go:build e2e

package bench

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/tallyman-dev/tallyman/test/machine"
)

// benchSize tells how large the binary is and how long it takes to begin.
func benchSize(t *testing.T, all *figures) {
	binary := filepath.Join(machine.Root(t), "build", "tally")
	info, err := os.Stat(binary)
	if err != nil {
		t.Fatalf("%v: run make build first", err)
	}
	all.add(t, told("binary-size", float64(info.Size())/(1<<20), "MiB"))
	var took []time.Duration
	for range 21 {
		took = append(took, timed(func() { command(t, "", binary, "version") }))
	}
	all.add(t, told("start-of-a-command", median(t, "tally version", took).Seconds()*1000, "ms"))
}
