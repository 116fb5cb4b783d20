//go:build e2e

package cluster_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/tallyman-dev/tallyman/test/machine"
	"github.com/tallyman-dev/tallyman/test/machine/cluster"
)

// nextVersion is what another build of the same sources calls itself.
const nextVersion = "v99.1.0"

// buildNext makes a tally of another version.
func buildNext(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "tally")
	build := exec.Command("go", "build", "-ldflags", "-s -w -X main.version="+nextVersion, "-o", binary, "./cmd/tally")
	build.Dir = machine.Root(t)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build another version: %v: %s", err, out)
	}
	return binary
}

// upgrade replaces the server and then every agent, one by one. No container
// may restart, no request and no question for a name may fail.
func upgrade(w *world, next string) {
	w.silentAfter(longSilence)
	before := w.processes()
	traffic := w.begin(append(w.ways(w.nodes[0]), w.ways(w.nodes[3])...))
	traffic.settled(w)
	begun := time.Now()
	for _, m := range append([]*cluster.Machine{w.server}, w.nodes...) {
		m.Install(next)
		m.TallyProcess().Stop()
		m.StartTallyAgain()
		w.awaitVersion(m, next)
		w.awaitReady()
		w.awaitPods("web-", 8)
	}
	for _, m := range w.nodes {
		w.obeyed(m, "upgrade")
	}
	traffic.settled(w)
	if failed := traffic.end(w.t, "upgrade", begun); failed > 0 {
		w.t.Errorf("%d requests failed", failed)
	}
	w.same(before)
}

// awaitVersion waits until what runs on a machine, as the server sees it, is of the
// next version, its keeper besides.
func (w *world) awaitVersion(m *cluster.Machine, binary string) {
	w.t.Helper()
	w.Eventually(patience, m.Name+" is of the new version", func() error {
		o, err := w.server.Overview()
		if err != nil {
			return err
		}
		version := o.Version
		if m != w.server {
			n := node(o, m.Name)
			if n == nil {
				return fmt.Errorf("no such node")
			}
			version = n.Version
			running, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", m.Keeper()))
			if err != nil || running != binary {
				return fmt.Errorf("keeper: %s, %v", running, err)
			}
		}
		if version != nextVersion {
			return fmt.Errorf("version %s", version)
		}
		return nil
	})
}
