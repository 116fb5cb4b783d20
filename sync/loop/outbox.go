package loop

import (
	"cmp"
	"context"
	"maps"
	"slices"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/planner"
	"github.com/tallyman-dev/tallyman/proxy"
)

// outbox is what was planned and not yet handed over. While the record does
// not take the decisions, plans gather here, the newest value a place.
type outbox struct {
	decisions   map[decisionKey]nodes.Decision
	assignments map[string]nodes.Assignment
	routes      *proxy.Table
	nodes       *desired.Nodes
	failures    int
	// trouble is why decisions can't be recorded; empty when they can.
	trouble string
}

type decisionKey struct{ kind, key string }

func (b *outbox) add(p *planner.Plan) {
	for _, d := range p.Decisions {
		// A planner that adopts a ledger repeats all of it; what is the loop's
		// own, the loop has taken from there already.
		if !ours(d) {
			b.decide(d)
		}
	}
	if p.Routes != nil {
		b.routes = p.Routes
	}
	for _, a := range p.Assignments {
		if b.assignments == nil {
			b.assignments = map[string]nodes.Assignment{}
		}
		b.assignments[a.Node] = a
	}
}

func (b *outbox) decide(decisions ...nodes.Decision) {
	if b.decisions == nil {
		b.decisions = map[decisionKey]nodes.Decision{}
	}
	for _, d := range decisions {
		b.decisions[decisionKey{d.Kind, d.Key}] = d
	}
}

// deliver records the decisions and then, and only then, hands over what
// follows from them. When the record fails, everything stays for the next try.
// What was decided without a record and before any node has reported stays, too:
// after another start it would be taken for all that there was. While the record
// is in doubt nothing is handed over.
func (r *runner) deliver(ctx context.Context) {
	b := &r.outbox
	if !r.state.Informed() {
		return
	}
	if len(b.decisions) > 0 {
		decisions := slices.SortedFunc(maps.Values(b.decisions), func(a, b nodes.Decision) int {
			return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Key, b.Key))
		})
		decisions, edition := r.withEdition(decisions)
		if err := r.o.Record.Record(ctx, decisions); err != nil {
			if ctx.Err() != nil {
				return
			}
			wait := r.retryAfter(b.failures)
			b.failures++
			b.trouble = "decisions can't be recorded, and nothing is handed to the nodes before they are: " + err.Error()
			r.count(func(s *Stats) { s.RecordErrors++ })
			r.o.Log.Error("decisions can't be recorded; nothing is handed to the nodes before they are",
				"reason", err, "retry_in", wait)
			r.retry.Reset(wait)
			return
		}
		b.failures, b.trouble, r.edition = 0, "", edition
		r.keep(decisions)
		b.decisions = nil // a rollout of thousands of pods would leave its table behind
	}
	if b.nodes != nil {
		r.o.Executor.Tune(*b.nodes)
		b.nodes = nil
	}
	if r.doubt != nil {
		return
	}
	if b.routes != nil {
		r.o.Executor.Route(b.routes)
		b.routes = nil
	}
	for _, node := range slices.Sorted(maps.Keys(b.assignments)) {
		r.o.Executor.Assign(b.assignments[node])
	}
	b.assignments = nil
}

// keep has the nodes keep what was recorded, once the record counts.
func (r *runner) keep(decisions []nodes.Decision) {
	if r.doubt != nil {
		r.doubt.ledger = append(r.doubt.ledger, decisions...)
		return
	}
	r.o.Executor.Ledger(decisions)
}
