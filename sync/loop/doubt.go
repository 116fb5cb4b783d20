package loop

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/planner"
)

// doubt is whether the record is an old copy: a backup, the file of before a
// shared store, another machine's. A ledger is told only after it was recorded, so
// one that is newer than the record shows that it is. Until a ledger has shown that
// the record is none, nothing follows from it that nodes would hear of, for what
// they keep and run is all that is known then.
type doubt struct {
	edition uint64
	// ledger is what nodes are to keep once the record counts.
	ledger []nodes.Decision
	// history is what the record had of it at the start.
	history []nodes.HistoryEntry
	// inputs are what was learned since the start, without the events.
	inputs []Input
	// heard tells that a node has reported completely, told that one had a ledger.
	heard, told bool
	// waited fires when there has been a chance for ledgers after the first report.
	waited *time.Timer
	over   bool
}

// ends fires when no ledger is waited for any more; nil, which blocks for ever,
// without doubt.
func (d *doubt) ends() <-chan time.Time {
	if d == nil {
		return nil
	}
	return d.waited.C
}

// doubtRecord begins the doubt.
func (r *runner) doubtRecord(decisions []nodes.Decision) {
	r.doubt = &doubt{edition: editionOf(decisions), ledger: slices.Clone(decisions), history: r.history, waited: stoppedTimer()}
	for _, d := range decisions {
		if m, err := memberOf(d); d.Kind == kindNode && err == nil && !m.Assumed {
			r.members.told[d.Key] = r.doubt.edition
		}
	}
}

// heed takes a complete report as a witness for the record or against it. It
// reports whether the record was given up, and the input was taken in.
func (r *runner) heed(ctx context.Context, in Input) (givenUp bool) {
	d := r.doubt
	if d == nil {
		return false
	}
	if in.Report != nil && in.Report.Complete {
		if edition := editionOf(in.Report.Ledger); edition > d.edition {
			r.o.Log.Error("the record is an old copy: a node keeps a newer ledger; the record is not used, and is made anew from what the nodes keep and run",
				"node", in.Report.Node, "ledger_edition", edition, "record_edition", d.edition)
			r.giveUpRecord(ctx)
			r.input(ctx, in)
			return true
		}
		if !d.heard {
			d.waited.Reset(r.o.Grace)
		}
		d.heard, d.told = true, d.told || r.o.Single || len(in.Report.Ledger) > 0
	}
	if in.Node == nil && in.Report == nil {
		return false
	}
	in.Events = nil
	if in.Report != nil && len(in.Report.Events) > 0 {
		report := *in.Report
		report.Events, in.Report = nil, &report
	}
	d.inputs = append(d.inputs, in)
	return false
}

// settled reports whether the record counts.
func (d *doubt) settled() bool { return d == nil || d.heard && (d.told || d.over) }

// settle ends the doubt when it may end: nodes are told from here on.
func (r *runner) settle() {
	if r.doubt == nil || !r.doubt.settled() {
		return
	}
	r.doubt.waited.Stop()
	r.o.Executor.Ledger(r.doubt.ledger)
	r.doubt = nil
	r.woken = true
}

// giveUpRecord begins once more, as after a loss of the record. What the record
// alone knows goes with the first step; whose the names are stays, where no ledger
// tells it better.
func (r *runner) giveUpRecord(ctx context.Context) {
	d := r.doubt
	d.waited.Stop()
	r.wake.Stop()
	if r.start != nil {
		r.start.timer.Stop()
	}
	r.doubt, r.state, r.change, r.outbox = nil, planner.New(r.o.Planner), planner.Change{}, outbox{}
	r.forgot, r.members.lost, r.members.judged, r.times.given = true, true, nil, desired.Nodes{}
	r.forgetRecorded(d)
	r.forgetObserved(d)
	wanted := r.branch.restartBranch()
	r.start = r.newStart()
	r.keepMembers()
	r.expect()
	for _, in := range d.inputs {
		r.input(ctx, in)
	}
	if wanted != nil {
		r.want(ctx, wanted)
	}
}

// keepMembers records anew whose the names are, and the uses of join tokens.
func (r *runner) keepMembers() {
	for _, m := range r.members.byName {
		if d, err := memberDecision(m); err == nil {
			r.outbox.decide(d)
			r.expectNode(d)
		}
	}
	for id, use := range r.members.tokens {
		if d, err := tokenDecision(id, use); err == nil {
			r.outbox.decide(d)
		}
	}
}

// forgetRecorded has all go that the record says, but whose the names are.
func (r *runner) forgetRecorded(old *doubt) {
	for _, d := range old.ledger {
		if !isMembership(d) && d.Kind != kindEdition {
			r.outbox.decide(nodes.Decision{Kind: d.Kind, Key: d.Key})
		}
	}
	before := map[string]bool{}
	for i := range old.history {
		before[historyKey(&old.history[i])] = true
	}
	r.history = slices.DeleteFunc(slices.Clone(r.history), func(e nodes.HistoryEntry) bool { return before[historyKey(&e)] })
	r.o.Record.SetHistory(r.history)
	for i := range r.history {
		r.carry(&r.history[i])
	}
}

// forgetObserved drops what nodes said that have not reported since.
func (r *runner) forgetObserved(old *doubt) {
	states, _ := r.o.Record.Observed()
	for i := range states {
		name := states[i].Name
		if !slices.ContainsFunc(old.inputs, func(in Input) bool { return in.Report != nil && in.Report.Complete && in.Report.Node == name }) {
			r.o.Record.ForgetNode(name)
		}
	}
}

// contradict says that a ledger which came too late is newer than the record that
// the server went by.
func (r *runner) contradict(report *nodes.Report, edition uint64) {
	why := fmt.Sprintf("The node keeps a newer ledger (edition %d) than the server's record (edition %d), which is an old copy: what was decided in between is not known. "+
		"Look for pods of StatefulSets that run twice and for addresses that changed (tally status), and restore no old record again.", edition, r.edition)
	r.o.Log.Error("a node that came late keeps a newer ledger than the record, which is an old copy; the record stays, and what was decided in between is not known: look for pods that run twice",
		"node", report.Node, "ledger_edition", edition, "record_edition", r.edition)
	now := r.now()
	r.o.Record.AppendEvents([]nodes.Event{{
		Object: desired.Key{Kind: "Node", Name: report.Node}, Warning: true, Reason: "NewerLedger", Message: why,
		Source: "server", First: now, Last: now, Count: 1,
	}})
}
