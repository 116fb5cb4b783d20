package loop

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
)

// carried counts the entries of the history that the machine keeps.
func (m *machine) carried() (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for place := range m.ledger {
		if place.kind == kindHistory {
			n++
		}
	}
	return n
}

// TestNodesCarryTheHistory: as much of it as is listed, and no more.
func TestNodesCarryTheHistory(t *testing.T) {
	run(t, func(w *world) {
		w.stop()
		for i := range shownHistory - 1 {
			w.record.AppendHistory(nodes.HistoryEntry{
				Revision: desired.Revision{SHA: fmt.Sprint("old", i)}, Outcome: nodes.OutcomeConverged, Seen: time.Now().Add(time.Duration(i) * time.Millisecond).UTC(),
			})
		}
		w.start()
		w.machine.connect(w.inputs)
		for i, sha := range []string{"aaaaaaaa", "bbbbbbbb", "cccccccc"} {
			w.repository.commit(sha, deployment("web", "web:1", int32(1+i)))
			w.push(sha)
			time.Sleep(time.Second)
			synctest.Wait()
		}
		if n := w.machine.carried(); n != shownHistory {
			t.Fatalf("the node carries %d entries, want %d", n, shownHistory)
		}
		before := w.Overview().History
		w.stop()
		w.record = newMemory()
		w.start()
		w.machine.connect(w.inputs)
		synctest.Wait()
		if diff := cmp.Diff(before, w.Overview().History); diff != "" {
			t.Errorf("history before -, after +:\n%s", diff)
		}
		if diff := cmp.Diff(before, w.record.History(0)); diff != "" {
			t.Errorf("recorded history before -, after +:\n%s", diff)
		}
		if n := w.machine.carried(); n != shownHistory {
			t.Errorf("after that the node carries %d entries, want %d", n, shownHistory)
		}
	})
}

// TestAnEarlierHistoryIsCarried: the record is of a version that kept it to itself.
func TestAnEarlierHistoryIsCarried(t *testing.T) {
	run(t, func(w *world) {
		w.repository.commit("aaaaaaaa", deployment("web", "web:1", 1))
		w.push("aaaaaaaa")
		w.stop()
		for place := range w.record.decisions {
			if place.kind == kindHistory {
				delete(w.record.decisions, place)
				delete(w.machine.ledger, place)
			}
		}
		w.start()
		w.machine.connect(w.inputs)
		synctest.Wait()
		if n := w.machine.carried(); n != 1 {
			t.Errorf("the node carries %d entries, want 1", n)
		}
	})
}

func TestJoinHistory(t *testing.T) {
	at := func(seconds int64) time.Time { return time.Unix(seconds, 0) }
	entry := func(sha string, outcome nodes.Outcome, seen time.Time) nodes.HistoryEntry {
		return nodes.HistoryEntry{Revision: desired.Revision{SHA: sha}, Outcome: outcome, Seen: seen}
	}
	for _, c := range []struct {
		name              string
		since, told, want []nodes.HistoryEntry
	}{
		{
			"news come first",
			[]nodes.HistoryEntry{entry("c", nodes.OutcomeRejected, at(9))},
			[]nodes.HistoryEntry{entry("b", nodes.OutcomeConverged, at(2)), entry("a", nodes.OutcomeConverged, at(1))},
			[]nodes.HistoryEntry{entry("c", nodes.OutcomeRejected, at(9)), entry("b", nodes.OutcomeConverged, at(2)), entry("a", nodes.OutcomeConverged, at(1))},
		},
		{
			"what had ended stays so",
			[]nodes.HistoryEntry{entry("b", nodes.OutcomePending, at(9))},
			[]nodes.HistoryEntry{entry("b", nodes.OutcomeConverged, at(2))},
			[]nodes.HistoryEntry{entry("b", nodes.OutcomeConverged, at(2))},
		},
		{
			"what had not has the end that it has now",
			[]nodes.HistoryEntry{entry("b", nodes.OutcomeConverged, at(9))},
			[]nodes.HistoryEntry{entry("b", nodes.OutcomePending, at(2))},
			[]nodes.HistoryEntry{entry("b", nodes.OutcomeConverged, at(2))},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, joinHistory(c.since, c.told)); diff != "" {
				t.Errorf("wanted -, got +:\n%s", diff)
			}
		})
	}
}
