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

// lineage is how many editions a record has for itself. One that is made anew of
// ledgers leaves the rest of its predecessor's behind: a node that is away may
// have kept a newer ledger than those which told, and what is decided from here
// on counts more.
const lineage = 1 << 32

// afterLoss is the edition of a record that was made anew when ledgers of edition
// were the newest that told.
func afterLoss(edition uint64) uint64 { return (edition/lineage + 1) * lineage }

// withEdition adds the next edition to decisions that the ledger takes part in.
func (r *runner) withEdition(decisions []nodes.Decision) ([]nodes.Decision, uint64) {
	if !slices.ContainsFunc(decisions, func(d nodes.Decision) bool { return d.Kind != nodes.PodDecision }) {
		return decisions, r.edition
	}
	next := r.edition + 1
	d, err := editionDecision(next)
	if err != nil {
		r.o.Log.Error("edition of the ledger not recorded", "reason", err)
		return decisions, r.edition
	}
	decisions = slices.DeleteFunc(decisions, func(d nodes.Decision) bool { return d.Kind == kindEdition })
	return append(decisions, d), next
}

func editionDecision(n uint64) (nodes.Decision, error) {
	value, err := json.Marshal(n)
	return nodes.Decision{Kind: kindEdition, Key: keyEdition, Value: value}, err
}

// recallEdition puts what is decided from here on above a newer ledger that came
// after the start, and has that recorded.
func (r *runner) recallEdition(report *nodes.Report) {
	edition := editionOf(report.Ledger)
	if edition <= r.edition {
		return
	}
	if !r.members.lost {
		r.contradict(report, edition)
	}
	r.edition = edition
	if r.members.lost {
		r.edition = afterLoss(edition)
	}
	if d, err := editionDecision(r.edition); err == nil {
		r.outbox.decide(d)
	}
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
	r.edition = afterLoss(max(r.edition, s.edition))
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
