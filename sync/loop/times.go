package loop

import (
	"encoding/json"
	"time"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
)

// The longest lease that a node may hold is a decision: the next server waits
// as long before it takes a node's fenced pods for stopped.
const (
	kindLease = "node-lease"
	keyLease  = "longest"
)

// longestLease is the value of that decision.
type longestLease struct {
	Lease time.Duration `json:"lease"`
}

// times is what the executor was told about silence and leases.
type times struct {
	given desired.Nodes
	at    time.Time
	// longest is the longest lease that anybody may hold.
	longest time.Duration
}

// learnLease reads the decision of an earlier server.
func (r *runner) learnLease(d nodes.Decision) {
	var value longestLease
	if err := json.Unmarshal(d.Value, &value); err != nil {
		r.o.Log.Warn("the recorded duration of leases can't be read; the default is taken", "reason", err)
		return
	}
	r.times.longest = max(r.times.longest, value.Lease)
}

// recallLease takes from a ledger that came after the start how long leases may
// be that earlier servers granted.
func (r *runner) recallLease(ledger []nodes.Decision) {
	before := r.times.longest
	for _, d := range ledger {
		if d.Kind == kindLease && d.Value != nil {
			r.learnLease(d)
		}
	}
	if r.times.longest > before {
		r.recordLease(r.times.longest)
		r.o.Executor.Expect(nil, r.times.longest)
	}
}

// expect names the nodes that earlier servers may have granted leases to.
func (r *runner) expect() {
	known := make([]nodes.NodeState, 0, len(r.start.expected))
	described := map[string]bool{}
	for _, state := range r.start.states {
		if r.start.expected[state.Name] {
			known, described[state.Name] = append(known, state), true
		}
	}
	for name := range r.start.expected {
		if !described[name] {
			known = append(known, nodes.NodeState{Node: nodes.Node{Name: name}})
		}
	}
	r.o.Executor.Expect(known, r.times.longest)
}

// tune hands over what the revision in force says about silence and leases. A
// longer lease is recorded before it is granted, a shorter one when none of the
// longer can be held any more.
func (r *runner) tune() {
	snapshot := r.state.InForce()
	if snapshot == nil {
		return
	}
	wanted, now := snapshot.Settings().Nodes, r.now()
	if wanted != r.times.given {
		r.times.given, r.times.at = wanted, now
		r.outbox.nodes = &wanted
	}
	switch {
	case wanted.Lease > r.times.longest:
		r.recordLease(wanted.Lease)
	case wanted.Lease < r.times.longest && r.outbox.nodes == nil && now.Sub(r.times.at) > 2*r.times.longest:
		r.recordLease(wanted.Lease)
	}
}

func (r *runner) recordLease(d time.Duration) {
	value, err := json.Marshal(longestLease{d})
	if err != nil {
		r.o.Log.Error("duration of leases not recorded", "reason", err)
		return
	}
	r.times.longest = d
	r.outbox.decide(nodes.Decision{Kind: kindLease, Key: keyLease, Value: value})
}

// ours tells the loop's own decisions from the planner's.
func ours(d nodes.Decision) bool {
	return isMembership(d) || d.Kind == kindFollowed || d.Kind == kindLease || d.Kind == kindEdition || d.Kind == kindHistory
}
