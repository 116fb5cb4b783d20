package loop

import (
	"encoding/json"
	"slices"

	"github.com/tallyman-dev/tallyman/nodes"
)

// kindHistory is what became of a revision. The entries that an overview lists
// travel in the ledger, for no container carries them.
const kindHistory = "history"

// historyKey orders entries by when they were seen.
func historyKey(e *nodes.HistoryEntry) string {
	return e.Seen.UTC().Format("20060102T150405.000000000Z") + "-" + e.Revision.SHA
}

// carry has the nodes carry an entry.
func (r *runner) carry(e *nodes.HistoryEntry) {
	value, err := json.Marshal(e)
	if err != nil {
		r.o.Log.Error("the outcome of a revision is not recorded", "revision", e.Revision.SHA, "reason", err)
		return
	}
	r.outbox.decide(nodes.Decision{Kind: kindHistory, Key: historyKey(e), Value: value})
}

// carryAll has the nodes carry what they do not yet.
func (r *runner) carryAll(carried []nodes.Decision) {
	known := map[string]bool{}
	for _, d := range carried {
		if d.Kind == kindHistory {
			known[d.Key] = true
		}
	}
	for i := range r.history {
		if e := &r.history[i]; !known[historyKey(e)] {
			r.carry(e)
		}
	}
}

// recallHistory takes from the first ledger that there is what became of
// earlier revisions, when the record was lost. What was noticed since comes after it.
func (r *runner) recallHistory(ledger []nodes.Decision) {
	if !r.forgot || len(ledger) == 0 {
		return
	}
	r.forgot = false
	var told []nodes.HistoryEntry
	for _, d := range ledger {
		var e nodes.HistoryEntry
		if d.Kind == kindHistory && json.Unmarshal(d.Value, &e) == nil {
			told = append(told, e)
		}
	}
	if len(told) == 0 {
		return
	}
	slices.SortFunc(told, func(a, b nodes.HistoryEntry) int { return b.Seen.Compare(a.Seen) })
	r.clock.see(told[0].Seen)
	for i := range r.history {
		r.outbox.decide(nodes.Decision{Kind: kindHistory, Key: historyKey(&r.history[i])})
	}
	r.history = joinHistory(r.history, told)
	r.o.Record.SetHistory(r.history)
	r.carryAll(nil)
}

// joinHistory puts what was noticed since the start before what a ledger tells.
// A revision of both is one entry: seen when the ledger says, and ended as it
// says unless it has ended only since.
func joinHistory(since, told []nodes.HistoryEntry) []nodes.HistoryEntry {
	since = slices.DeleteFunc(slices.Clone(since), func(e nodes.HistoryEntry) bool {
		i := slices.IndexFunc(told, func(t nodes.HistoryEntry) bool { return t.Revision.SHA == e.Revision.SHA })
		if i >= 0 && told[i].Outcome == nodes.OutcomePending {
			e.Seen = told[i].Seen
			told[i] = e
		}
		return i >= 0
	})
	all := append(since, told...)
	return all[:min(len(all), shownHistory)]
}
