package planner

import "testing"

// TestARevisionBeforeTheFirstNodeIsCarriedOut: a new server has put a revision
// in force before any node has reported.
func TestARevisionBeforeTheFirstNodeIsCarriedOut(t *testing.T) {
	w := newWorld(t)
	w.push(deployment("web", 2), serviceFor("web"), barePod("one", "app:1"))
	ready := newWorld(t, "n1").machines["n1"]
	w.machines["n1"] = ready
	w.join("n1")
	w.settle()
	if got := len(w.pods("web")) + len(w.pods("one")); got != 3 {
		t.Errorf("%d pods run, want 3", got)
	}
	if r := w.s.routes; r == nil || len(r.Services) != 1 || len(r.Services[0].Ports[0].Endpoints) != 2 {
		t.Errorf("routes %+v", r)
	}
}
