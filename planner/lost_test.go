package planner

import (
	"testing"

	"github.com/tallyman-dev/tallyman/nodes"
)

// TestNodeThatLostItsStoreStaysRouted: it holds nothing until it is assigned
// again what it runs, and is then believed.
func TestNodeThatLostItsStoreStaysRouted(t *testing.T) {
	w := newWorld(t, "n1")
	w.push(deployment("web", 2), serviceFor("web"))
	w.settle()
	ready := func() int { return len(w.s.routes.Services[0].Ports[0].Endpoints) }
	if ready() != 2 {
		t.Fatalf("%d endpoints, want 2", ready())
	}
	n := w.machines["n1"]
	clear(n.held)
	clear(n.status)
	w.join("n1")
	if ready() != 2 {
		t.Errorf("%d endpoints before the node has its assignment, want 2", ready())
	}
	uid := w.pods("web")[0].UID
	w.next(Change{Reports: []nodes.Report{{Node: "n1", Statuses: []nodes.PodStatus{n.setReady(uid, false, w.now)}}}})
	if ready() != 1 {
		t.Errorf("%d endpoints after the node said that one is not ready, want 1", ready())
	}
}
