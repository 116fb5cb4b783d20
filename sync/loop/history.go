package loop

import (
	"fmt"
	"slices"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
)

// The views share r.history; every change makes a new slice.

// appendHistory notes a revision that was seen now, and returns its entry: no two
// were seen at one instant, so that this tells their order.
func (r *runner) appendHistory(rev desired.Revision) nodes.HistoryEntry {
	e := nodes.HistoryEntry{Revision: rev, Outcome: nodes.OutcomePending, Seen: r.now()}
	if len(r.history) > 0 && !e.Seen.After(r.history[0].Seen) {
		e.Seen = r.history[0].Seen.Add(1)
		r.clock.see(e.Seen)
	}
	r.o.Record.AppendHistory(e)
	if len(r.history) == shownHistory {
		oldest := &r.history[shownHistory-1]
		r.outbox.decide(nodes.Decision{Kind: kindHistory, Key: historyKey(oldest)})
	}
	r.history = append([]nodes.HistoryEntry{e}, r.history[:min(len(r.history), shownHistory-1)]...)
	r.carry(&e)
	return e
}

func (r *runner) updateHistory(e nodes.HistoryEntry) {
	r.o.Record.UpdateHistory(e)
	for i := range r.history {
		if r.history[i].Revision.SHA == e.Revision.SHA {
			r.history = slices.Clone(r.history)
			r.history[i] = e
			r.carry(&e)
			return
		}
	}
}

// entry returns the newest entry of a revision.
func (r *runner) entry(sha string) (e nodes.HistoryEntry, ok bool) {
	return (&view{history: r.history}).entry(sha)
}

// end notes the outcome of a revision. It ends once: what is said later of the
// same outcome changes the words alone.
func (r *runner) end(rev desired.Revision, outcome nodes.Outcome, message string, problems int) {
	e, seen := r.entry(rev.SHA)
	if !seen {
		e = r.appendHistory(rev)
	}
	if e.Outcome != outcome {
		e.Outcome, e.Ended = outcome, r.now()
		r.count(func(s *Stats) { s.Revisions[outcome]++ })
	}
	e.Message, e.Problems = message, problems
	r.updateHistory(e)
}

// superseded ends a revision that has no outcome yet.
func (r *runner) superseded(old, by desired.Revision) {
	e, seen := r.entry(old.SHA)
	if !seen || e.Outcome != nodes.OutcomePending || old.SHA == by.SHA {
		return
	}
	r.end(old, nodes.OutcomeSuperseded, "superseded by "+by.Short()+" "+by.Subject(), 0)
}

// assess notes when the revision in force has converged or failed. One that
// failed may converge later; one that converged has done so.
func (r *runner) assess() {
	snapshot := r.state.InForce()
	if snapshot == nil {
		return
	}
	e, seen := r.entry(snapshot.Revision().SHA)
	if !seen || e.Outcome != nodes.OutcomePending && e.Outcome != nodes.OutcomeFailed {
		return
	}
	converged, failed := r.state.Settled()
	switch {
	case converged:
		r.end(e.Revision, nodes.OutcomeConverged, r.state.Unrouted(), 0)
		r.o.Log.Info("revision converged", "revision", e.Revision.SHA, "after", r.now().Sub(e.Seen))
	case failed == "":
	case e.Outcome != nodes.OutcomeFailed:
		r.end(e.Revision, nodes.OutcomeFailed, failed, 0)
		r.o.Log.Warn("revision failed", "revision", e.Revision.SHA, "reason", failed)
	case e.Message != failed:
		r.end(e.Revision, nodes.OutcomeFailed, failed, 0)
	}
}

func plural(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return fmt.Sprintf("%d %ss", n, word)
}
