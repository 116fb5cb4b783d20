package planner

import (
	"slices"
	"testing"
)

// TestAnOldLedgerDoesNotOverwriteWhatIsInForce: a server that began without a
// record decided everything itself; a node that was away comes back with the
// ledger of that time.
func TestAnOldLedgerDoesNotOverwriteWhatIsInForce(t *testing.T) {
	w := newWorld(t, "n1")
	w.push(deployment("web", 2), serviceFor("web"), deployment("db", 1))
	w.settle()
	old := slices.Clone(w.machines["n1"].ledger)
	w.push(deployment("web", 2), serviceFor("web"))
	w.settle()
	w.machines["n1"].ledger = old
	if p := w.join("n1"); len(p.Decisions) > 0 {
		t.Errorf("decided anew: %v", p.Decisions)
	}
	w.settle()
}
