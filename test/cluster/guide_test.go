//go:build e2e

package cluster_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/tallyman-dev/tallyman/test/machine/cluster"
	"github.com/tallyman-dev/tallyman/test/machine/guide"
)

// TestGuides follows the guides on machines that have nothing, in the order in
// which they build on each other.
func TestGuides(t *testing.T) {
	w := &world{Cluster: cluster.New(t), t: t}
	w.PushImage(inside, "inside:1")
	machines := map[string]*cluster.Machine{}
	for _, name := range []string{"first", "second", "third"} {
		machines[name] = w.Machine(name)
		w.nodes = append(w.nodes, machines[name])
	}
	walk := guide.New(t, w.Cluster, machines)
	for i, m := range w.nodes {
		walk.Words[fmt.Sprintf("192.0.2.%d", i+1)] = m.Address
	}
	walk.Follow("docs/install/cluster.md")
	before := w.processes()
	if len(before) != 6 {
		t.Fatalf("containers of the first guide: %v, want 6", before)
	}
	walk.Follow("docs/install/upgrades.md")
	w.same(before)

	stays := machines["second"].Containers()
	walk.Follow("docs/install/disasters.md")
	after := w.processes()
	for _, one := range stays {
		if !slices.Contains(after, one) {
			t.Errorf("of the machine that was not lost, %s is gone", one)
		}
	}
	w.once(6)
}
