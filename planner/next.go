package planner

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
)

const (
	// maxShown is how many actions of a step are kept to be shown.
	maxShown = 1000
	// maxWaits is how many things that wait a plan lists: it is made at each step,
	// and with thousands of nodes each of them may be behind.
	maxWaits = 100
	// drainPatience is how long a pod that goes waits for every node to have
	// taken it out of its routes.
	drainPatience = time.Second
	// startPatience is how long, after a start, routes wait for the reports of
	// nodes that the record knows: a table made without them would cut off
	// pods that serve.
	startPatience = 10 * time.Second
	// maxRoutePause bounds how long a change of routes waits for others.
	maxRoutePause = time.Second
)

// Next is the state after a change, and the plan that leads there. s is not
// changed. Everything in the plan may be shared with later states; nobody may
// change it.
func Next(s *State, c Change, now time.Time) (*State, *Plan) {
	st := begin(s, now)
	st.restore(c.Decisions)
	for i := range c.Nodes {
		st.connect(&c.Nodes[i])
	}
	for i := range c.Reports {
		st.report(&c.Reports[i])
	}
	st.hear(&c)
	st.submit(c.Snapshot, c.Source)
	st.sampled(c.Samples)
	if st.snapshot != nil && st.informed {
		st.wakeUp()
		st.giveRanges()
		st.giveKeys()
		st.spare()
		st.depart()
		st.wakeDaemons()
		st.autoscale()
		st.reconcile()
		st.removeNodes()
		st.evict()
		st.reconcile() // what takes the place of those that go
		st.settleStorage()
		for st.schedule(); st.madeRoom; st.schedule() {
			st.madeRoom = false
			st.reconcile() // what takes the place of those that went
			st.settleStorage()
		}
		st.routeServices()
		st.drainPods()
		st.assess()
		st.oweRoutes()
	}
	return st.finish()
}

// step is one call of Next: the state being made, what is to be looked at, and
// the plan.
type step struct {
	*State
	base *State
	now  time.Time
	plan *Plan

	dirtyGroups   map[desired.Key]bool
	dirtyServices map[desired.Key]bool
	dirtyNodes    map[string]bool
	// touched are the groups whose verdict must be told anew.
	touched map[desired.Key]bool
	// dueScalers are the autoscalers to ask again.
	dueScalers map[desired.Key]bool
	// owned are groups that this step copied already and may change in place.
	owned map[desired.Key]*group
	// fresh are the pods that this step made.
	fresh     []nodes.UID
	decisions map[decisionID]any
	// stir is what happened that may help a waiting pod.
	stir stir
	// madeRoom is set when pods had to go for one of higher priority.
	madeRoom bool
	// storageDirty is set when claims and volumes must be looked at; lists are
	// those of the rules, made when somebody asks.
	storageDirty bool
	lists        *storageRules
	// heldClaims are those whose holder is to be noted anew.
	heldClaims map[desired.Key]bool
	// daemons is what was found of DaemonSets in this step.
	daemons map[desired.Key]*daemonLook
	// texts are those that restored pods share.
	texts map[string]string
	// heard are the nodes of which something was heard; turned is set when one of
	// them came or went.
	heard  map[string]bool
	turned bool
	// back are the zones of nodes that were silent and answer again.
	back map[string]bool
}

type decisionID struct{ kind, key string }

func begin(s *State, now time.Time) *step {
	next := *s
	if next.started.IsZero() {
		next.started = now
	}
	next.at, next.actions = now, nil
	return &step{
		State:         &next,
		base:          s,
		now:           now,
		plan:          &Plan{},
		dirtyGroups:   map[desired.Key]bool{},
		dirtyServices: map[desired.Key]bool{},
		dirtyNodes:    map[string]bool{},
		touched:       map[desired.Key]bool{},
		dueScalers:    map[desired.Key]bool{},
		owned:         map[desired.Key]*group{},
		decisions:     map[decisionID]any{},
		stir:          newStir(),
		heard:         map[string]bool{},
		back:          map[string]bool{},
		texts:         map[string]string{},
		daemons:       map[desired.Key]*daemonLook{},
		heldClaims:    map[desired.Key]bool{},
	}
}

// edit gives the group with this key to change in place until the step is
// over; nil when there is none.
func (st *step) edit(k desired.Key) *group {
	if g := st.owned[k]; g != nil {
		return g
	}
	g, ok := st.groups.Get(k)
	if !ok {
		return nil
	}
	clone := *g
	clone.pods = slices.Clone(g.pods)
	return st.own(&clone)
}

// pod is the state's, by a shorter way for groups of this step.
func (st *step) pod(uid nodes.UID) (*group, *pod) {
	ref, ok := st.pods.Get(uid)
	if !ok {
		return nil, nil
	}
	g := st.owned[ref.group]
	if g == nil {
		if g, ok = st.groups.Get(ref.group); !ok {
			return nil, nil
		}
	}
	if i, found := g.find(ref.incarnation); found {
		return g, g.pods[i]
	}
	return g, nil
}

func (st *step) own(g *group) *group {
	st.owned[g.key] = g
	st.groups = st.groups.Set(g.key, g)
	return g
}

// change puts a changed copy of a pod into its group and returns it.
func (st *step) change(uid nodes.UID, with func(*pod)) *pod {
	ref, ok := st.pods.Get(uid)
	if !ok {
		return nil
	}
	g := st.edit(ref.group)
	i, found := g.find(ref.incarnation)
	if !found {
		return nil
	}
	p := *g.pods[i]
	with(&p)
	g.pods[i] = &p
	st.touched[g.key] = true
	return &p
}

// decide records a decision; a nil value forgets it.
func (st *step) decide(kind, key string, value any) { st.decisions[decisionID{kind, key}] = value }

func (st *step) act(verb string, object desired.Key, node, reason string) {
	st.plan.Actions = append(st.plan.Actions, Action{Verb: verb, Object: object, Node: node, Reason: reason})
}

func (st *step) event(object desired.Key, warning bool, reason, message string) {
	st.plan.Events = append(st.plan.Events, nodes.Event{
		Object: object, Warning: warning, Reason: reason, Message: message,
		Source: "tally-planner", First: st.now, Last: st.now, Count: 1,
	})
}

// wakeUp looks at the groups whose time has come.
func (st *step) wakeUp() {
	for k := range keys(st.active) {
		if g, ok := st.groups.Get(k); ok && !g.wake.IsZero() && !g.wake.After(st.now) {
			st.dirtyGroups[k] = true
		}
	}
}

// finish turns what the step collected into the plan.
func (st *step) finish() (*State, *Plan) {
	st.plan.Revision = st.force.Revision.SHA
	st.emitAssignments()
	st.noteHolders()
	st.emitDecisions()
	for k := range keys(st.active) {
		g, _ := st.groups.Get(k)
		st.wakeAt(g.wake)
	}
	for item := range st.waits() {
		if len(st.plan.Waiting) < maxWaits {
			st.plan.Waiting = append(st.plan.Waiting, item)
		} else {
			st.plan.MoreWaiting++
		}
	}
	st.wakeAt(st.storageWake)
	st.wakeForRoutes()
	st.wakeForDepartures()
	if st.snapshot != nil && st.routesWait() {
		st.wakeAt(st.started.Add(startPatience))
	}
	for _, a := range st.plan.Actions[:min(len(st.plan.Actions), maxShown)] {
		st.actions = append(st.actions, a.String())
	}
	if more := len(st.plan.Actions) - maxShown; more > 0 {
		st.actions = append(st.actions, fmt.Sprintf("and %d more", more))
	}
	if st.snapshot == st.base.snapshot && len(st.actions) == 0 {
		st.actions = st.base.actions
	}
	return st.State, st.plan
}

func (st *step) wakeAt(t time.Time) {
	if !t.IsZero() && (st.plan.Wake.IsZero() || t.Before(st.plan.Wake)) {
		st.plan.Wake = t
	}
}

// emitAssignments hands every changed node its whole assignment, but never
// before the node has said what it holds: what it has and an assignment
// doesn't would be stopped.
func (st *step) emitAssignments() {
	if !st.assigns() {
		return
	}
	for _, name := range slices.Sorted(maps.Keys(st.dirtyNodes)) {
		if n, ok := st.nodes.Get(name); ok && n.reported {
			st.ask(n)
			st.doubt(n)
			st.plan.Assignments = append(st.plan.Assignments, st.assignment(n))
		}
	}
}

func (s *State) assignment(n *node) nodes.Assignment {
	a := nodes.Assignment{Node: n.Name, Network: s.network, PodCIDR: n.podCIDR(), Session: s.sessionOf(n), Fenced: s.fencedOn(n), Pods: make([]*nodes.Pod, 0, n.pods.Len()), Measured: s.measures(n)}
	for _, p := range entries(n.pods) {
		a.Pods = append(a.Pods, p)
	}
	a.Volumes = s.volumesFor(n)
	for _, k := range s.configsFor(n, a.Volumes) {
		if c, ok := s.configs.Get(k); ok {
			a.Configs = append(a.Configs, c)
		}
	}
	return a
}

func (st *step) emitDecisions() {
	ids := slices.SortedFunc(maps.Keys(st.decisions), func(a, b decisionID) int {
		return cmp.Or(strings.Compare(a.kind, b.kind), strings.Compare(a.key, b.key))
	})
	for _, id := range ids {
		d := nodes.Decision{Kind: id.kind, Key: id.key}
		if v := st.decisions[id]; v != nil {
			d.Value = mustJSON(v)
		}
		st.plan.Decisions = append(st.plan.Decisions, d)
	}
}

// mustJSON writes our own plain types, which can't fail.
func mustJSON(v any) json.RawMessage {
	if raw, ok := v.(json.RawMessage); ok {
		return raw
	}
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("planner: encode %T: %v", v, err))
	}
	return b
}
