package loop

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/tallyman-dev/tallyman/nodes"
)

// edition is that of the ledger that the machine keeps.
func (m *machine) edition() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return editionOf([]nodes.Decision{m.ledger[decisionKey{kindEdition, keyEdition}]})
}

// TestALedgerOfBeforeALossCountsLess than all that was decided since, whenever it
// comes: the node that kept it may have been away.
func TestALedgerOfBeforeALossCountsLess(t *testing.T) {
	for name, late := range map[string]time.Duration{"in time": 0, "late": time.Minute} {
		t.Run(name, func(t *testing.T) {
			runWith(t, func(w *world) { w.several = true }, func(w *world) {
				for _, sha := range []string{"a", "b", "c", "d", "e"} {
					w.repository.commit(sha, deployment("web", "app:"+sha, 1))
					w.push(sha)
				}
				time.Sleep(5 * time.Second)
				w.stop()
				before := w.machine.edition()
				w.record = newMemory()
				w.start()
				time.Sleep(late)
				w.machine.connect(w.inputs)
				time.Sleep(20 * time.Second)
				synctest.Wait()
				if after := w.machine.edition(); before < 5 || after < before+lineage/2 {
					t.Errorf("the ledger has edition %d, and had %d before the record was lost", after, before)
				}
			})
		})
	}
}

// TestANewerLedgerThatComesLateRaisesTheEdition, durably, though there was a record.
func TestANewerLedgerThatComesLateRaisesTheEdition(t *testing.T) {
	runWith(t, func(w *world) { w.several = true }, func(w *world) {
		w.repository.commit("a", deployment("web", "app:1", 1))
		w.push("a")
		d, err := editionDecision(1000)
		if err != nil {
			t.Fatal(err)
		}
		info := nodes.Node{Name: "n2"}
		w.inputs <- Input{
			Node:   &nodes.NodeState{Node: info, Ready: true, Since: time.Now()},
			Report: &nodes.Report{Node: "n2", Complete: true, Info: &info, Ledger: []nodes.Decision{d}},
		}
		synctest.Wait()
		recorded, err := w.record.Decisions()
		if got := w.machine.edition(); err != nil || got < 1000 || editionOf(recorded) != got {
			t.Errorf("the ledger has edition %d, the record %d, %v", got, editionOf(recorded), err)
		}
	})
}
