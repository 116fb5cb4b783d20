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
// may restart.
func upgrade(w *world, next string) {
	before := w.processes()
	traffic := w.begin(append(w.ways(w.nodes[0]), w.ways(w.nodes[3])...))
	traffic.settled(w)
	begun := time.Now()
	for _, m := range append([]*cluster.Machine{w.server}, w.nodes...) {
		m.Install(next)
		m.TallyProcess().Stop()
		m.StartTallyAgain()
		w.awaitReady()
		w.awaitPods("web-", 8)
	}
	w.clone.Write("after.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: after}\n")
	w.clone.Apply("after the upgrade")
	traffic.settled(w)
	traffic.end(w.t, "upgrade", begun) // told, not asserted
	w.same(before)
	o, err := w.server.Overview()
	if err != nil {
		w.t.Fatal(err)
	}
	versions := []string{o.Version}
	for _, n := range o.Nodes {
		versions = append(versions, n.Version)
	}
	for _, v := range versions {
		if v != nextVersion {
			w.t.Errorf("versions of server and nodes: %v", versions)
			break
		}
	}
	w.Eventually(patience, "every keeper is of the new version", func() error {
		for _, m := range w.nodes {
			running, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", m.Keeper()))
			if err != nil || running != next {
				return fmt.Errorf("%s: %s, %v", m.Name, running, err)
			}
		}
		return nil
	})
}
