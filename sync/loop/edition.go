package loop

import (
	"context"
	"encoding/json"
	"slices"

	"github.com/tallyman-dev/tallyman/nodes"
)

// The edition counts what was ever recorded beside pods. It travels in the
// ledger: a node that was away may have kept an old one, and the newest counts.
const (
	kindEdition = "edition"
	keyEdition  = "ledger"
)

// editionOf is a ledger's edition; 0 for one that says none.
func editionOf(ledger []nodes.Decision) (n uint64) {
	for _, d := range ledger {
		if d.Kind == kindEdition && d.Key == keyEdition && json.Unmarshal(d.Value, &n) != nil {
			return 0
		}
	}
	return n
}

// withEdition adds the next edition to decisions that the ledger takes part in.
func (r *runner) withEdition(decisions []nodes.Decision) ([]nodes.Decision, uint64) {
	if !slices.ContainsFunc(decisions, func(d nodes.Decision) bool { return d.Kind != nodes.PodDecision }) {
		return decisions, r.edition
	}
	next := r.edition + 1
	value, err := json.Marshal(next)
	if err != nil {
		r.o.Log.Error("edition of the ledger not recorded", "reason", err)
		return decisions, r.edition
	}
	return append(decisions, nodes.Decision{Kind: kindEdition, Key: keyEdition, Value: value}), next
}

// weigh notes a ledger that a node kept, while there is no record: the newest
// tells what the cluster was.
func (s *start) weigh(node string, ledger []nodes.Decision) (newest bool) {
	edition := editionOf(ledger)
	if len(ledger) == 0 || s.keeper != "" && edition <= s.edition {
		return false
	}
	s.keeper, s.edition = node, edition
	return true
}

// trust leaves the newest ledger alone to the planner, and reads the revision
// again that it says was in force.
func (r *runner) trust(ctx context.Context) {
	s := r.start
	if s.keeper == "" {
		return
	}
	r.edition = max(r.edition, s.edition)
	for i := range r.change.Reports {
		report := &r.change.Reports[i]
		if report.Node != s.keeper {
			report.Ledger = nil
		}
		r.recallHistory(report.Ledger)
	}
	if s.followed != nil {
		r.restore(ctx, s.followed)
	}
}
