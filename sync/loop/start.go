package loop

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
)

// The loop's own decisions, beside the planner's: the revision that the
// cluster follows, which nodes there are and whose names they have, and how often
// join tokens were used. All travel in the ledger.
const (
	kindFollowed = "followed"
	keyFollowed  = "revision"
	kindNode     = "node"
	kindToken    = "token"
)

// isMembership tells what was decided about machines. It is recorded before
// anything else is known, so it alone does not make a record.
func isMembership(d nodes.Decision) bool { return d.Kind == kindNode || d.Kind == kindToken }

// followed is the value of the decision about the revision in force.
type followed struct {
	Revision desired.Revision `json:"revision"`
	Source   string           `json:"source"`
}

// start is the time between the beginning of Run and the first step: nodes
// that are known get a chance to say what they run.
type start struct {
	timer   *time.Timer
	expired bool
	// expected are the nodes that record and ledgers know of, joined those that
	// have reported completely.
	expected, joined map[string]bool
	// told is set once a ledger has said which nodes there are; guess while a
	// node has reported and none has, though there may be others: then only time tells.
	told, guess bool
	followed    *followed
	// keeper is the node that kept the newest ledger so far, edition that ledger's.
	keeper  string
	edition uint64
	// states and reports are what the record knew of the nodes at the beginning.
	states  []nodes.NodeState
	reports []nodes.Report
}

// over fires when the grace is over; nil, which blocks for ever, once started.
func (s *start) over() <-chan time.Time {
	if s == nil {
		return nil
	}
	return s.timer.C
}

func (r *runner) newStart() *start {
	return &start{timer: time.NewTimer(r.o.Grace), expected: map[string]bool{}, joined: map[string]bool{}}
}

// begin takes in the record.
func (r *runner) begin(ctx context.Context, decisions []nodes.Decision) {
	r.start = r.newStart()
	r.start.states, r.start.reports = r.o.Record.Observed()
	recorded := slices.ContainsFunc(decisions, func(d nodes.Decision) bool { return !isMembership(d) })
	if recorded {
		// Without a record nothing is said: the nodes' own ledgers, which would
		// be replaced, are all that is known then.
		r.change.Decisions = decisions
		r.doubtRecord(decisions)
		r.carryAll(decisions)
	}
	r.forgot, r.members.lost = !recorded, !recorded
	r.edition = editionOf(decisions)
	r.learn(decisions)
	if r.readFollowed(decisions) {
		r.restore(ctx, r.start.followed)
	}
	for _, d := range decisions {
		if isMembership(d) {
			r.takeIn(d)
			if !recorded {
				r.outbox.decide(d) // for the ledger, when there is one
			}
		}
	}
	r.expect()
}

// learn reads the loop's own decisions.
func (r *runner) learn(decisions []nodes.Decision) {
	for _, d := range decisions {
		switch {
		case d.Kind == kindNode && d.Value != nil:
			r.expectNode(d)
		case d.Kind == kindLease && d.Value != nil:
			r.learnLease(d)
		}
	}
}

// expectNode waits for a node that is known, unless it was removed.
func (r *runner) expectNode(d nodes.Decision) {
	if m, err := memberOf(d); err != nil || !m.Removed {
		r.start.expected[d.Key] = true
	}
}

// readFollowed takes in which revision was in force; false when nothing says so.
func (r *runner) readFollowed(decisions []nodes.Decision) bool {
	for _, d := range decisions {
		if d.Kind != kindFollowed || d.Key != keyFollowed {
			continue
		}
		value := &followed{}
		if err := json.Unmarshal(d.Value, value); err != nil {
			r.o.Log.Warn("the recorded revision can't be read; the newest one is taken", "reason", err)
			return false
		}
		r.start.followed = value
		return true
	}
	return false
}

// joined notes a node's complete report. Without a record, its ledger tells
// what the cluster was.
func (r *runner) joined(ctx context.Context, report *nodes.Report) {
	s := r.start
	s.joined[report.Node] = true
	if len(r.change.Decisions) > 0 {
		return
	}
	r.learn(report.Ledger)
	r.expect()
	newest := s.weigh(report.Node, report.Ledger)
	if newest {
		r.readFollowed(report.Ledger)
	}
	edition := editionOf(report.Ledger)
	for _, d := range report.Ledger {
		counts := newest && ours(d) && d.Kind != kindEdition && d.Kind != kindHistory
		if isMembership(d) {
			d, counts = r.remember(d, edition)
		}
		if counts {
			r.outbox.decide(d)
		}
	}
	// An empty node without a ledger may be the first of a new cluster, or one
	// of many that keep none.
	s.told = s.told || len(report.Ledger) > 0
	s.guess = !s.told && (s.guess || len(report.Held) > 0 || !r.o.Single)
}

// recall takes from a ledger that came after the start which revision was in
// force, when nobody else has said so.
func (r *runner) recall(ctx context.Context, ledger []nodes.Decision) {
	for _, d := range ledger {
		if d.Kind != kindFollowed || d.Key != keyFollowed {
			continue
		}
		value := &followed{}
		if err := json.Unmarshal(d.Value, value); err != nil {
			r.o.Log.Warn("the recorded revision can't be read; the newest one is taken", "reason", err)
			return
		}
		r.outbox.decide(d)
		r.restore(ctx, value)
	}
}

// starting reports whether the first step may be made, and prepares it.
func (r *runner) starting(ctx context.Context) bool {
	s := r.start
	if !s.expired && (len(s.joined) == 0 || s.guess || !s.complete() || !r.doubt.settled()) {
		r.publish()
		return false
	}
	s.timer.Stop()
	r.trust(ctx)
	for _, state := range s.states {
		if s.joined[state.Name] || !s.expected[state.Name] {
			continue
		}
		// Only the executor says when a node has been silent for long enough.
		state.Ready, state.Unheard, state.Lapsed, state.Since = false, true, false, r.now()
		state.Reason = "has not reported since the server started"
		r.change.Nodes = append(r.change.Nodes, state)
		r.o.Log.Info("node has not reported since the server started; its pods are left as they are", "node", state.Name)
	}
	// What was said last comes first: it holds for what is not reported now, as
	// by a node that lost its store and waits for its assignment.
	var said []nodes.Report
	for _, report := range s.reports {
		if s.expected[report.Node] {
			said = append(said, report)
		}
	}
	r.change.Reports = append(said, r.change.Reports...)
	r.start = nil
	r.woken = true
	return true
}

func (s *start) complete() bool {
	for name := range s.expected {
		if !s.joined[name] {
			return false
		}
	}
	return true
}
