package planner

import (
	"cmp"
	"slices"

	"github.com/benbjohnson/immutable"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/planner/place"
)

// connect takes in what became of a node's connection.
func (st *step) connect(state *nodes.NodeState) {
	n := st.nodeFor(state.Name)
	known := n.Node
	ready, silent := n.Ready, n.silent()
	if silent && state.Ready {
		st.back[n.seat.zone] = true
	}
	if n.Session != state.Session {
		st.dirtyNodes[n.Name] = true // it is told that its complete report was heard
	}
	n.NodeState, n.told = *state, !state.Unheard
	if state.Allocatable == nil && known.Allocatable != nil {
		n.Node = known
	}
	n.Routes = max(n.Routes, state.Routes)
	anyLive := st.anyLive()
	st.putNode(n)
	if ready != n.Ready || silent != n.silent() {
		st.nodeTurned(n)
	}
	st.lastOrFirst(anyLive)
}

// lastOrFirst looks again at all nodes when the last live one went silent or
// the first came back: what is routed to silent nodes depends on it.
func (st *step) lastOrFirst(anyLive bool) {
	if st.anyLive() == anyLive {
		return
	}
	for _, n := range entries(st.nodes) {
		st.nodeTurned(n)
	}
}

// nodeFor gives a copy of a node to change.
func (st *step) nodeFor(name string) *node {
	if n, ok := st.nodes.Get(name); ok {
		clone := *n
		return &clone
	}
	n := &node{
		pods:    immutable.NewSortedMap[nodes.UID, *nodes.Pod](comparer[nodes.UID](compareUID)),
		configs: immutable.NewSortedMap[desired.Key, int](comparer[desired.Key](desired.Key.Compare)),
	}
	n.Name, n.Since = name, st.now
	n.state = n.NodeState
	n.load = place.NewNode(&n.NodeState, "has not reported yet")
	return n
}

// putNode stores a node whose description or connection changed.
func (st *step) putNode(n *node) {
	refuses := ""
	switch {
	case n.silent():
		refuses = "is silent"
	case !n.live():
		refuses = "has not reported yet"
	case !n.podCIDR().IsValid():
		refuses = "has no range of pod addresses: all of " + st.network.Pods.String() + " are given"
		st.rangeless = st.rangeless.Set(n.Name, struct{}{})
	}
	n.state = effective(n, st.said(n.Name))
	state := n.state
	before := n.load
	st.reachDirty = st.reachDirty || !slices.Equal(before.DriverNodes(), state.DriverNodes)
	n.load = n.load.Change(&state, refuses)
	st.noteTaints(n)
	st.noteKey(n)
	st.count(n)
	st.nodes = st.nodes.Set(n.Name, n)
	st.putPeer(n)
	st.storageDirty = true
	st.stir.rooms[n.Name] = true
	if !place.Alike(before, n.load) {
		st.stir.nodes, st.reachDirty = true, true
	}
}

// nodeTurned looks again at everything that has pods on a node.
func (st *step) nodeTurned(n *node) {
	if n.live() {
		st.returned(n)
	}
	for uid := range keys(n.pods) {
		ref, _ := st.pods.Get(uid)
		st.dirtyGroups[ref.group] = true
		st.touched[ref.group] = true
		if _, p := st.pod(uid); p != nil {
			st.dirtyServicesOf(p)
			if st.ended(p) {
				st.stirred(p.request) // it keeps nobody away any more
			}
		}
	}
}

// report takes in what an agent says.
func (st *step) report(r *nodes.Report) {
	n := st.nodeFor(r.Node)
	wasLive, anyLive, first := n.live(), st.anyLive(), !n.reported
	changed := r.Info != nil || r.Complete
	if r.Info != nil {
		n.Node = *r.Info
		n.Name = r.Node
	}
	if r.Complete {
		n.Routes = r.Routes
		if !n.Ready && n.Session == 0 { // else its state, which may be newer, has said it
			n.Ready, n.Since, n.Reason = true, st.now, ""
		}
		n.reported, n.heard = true, n.Session
	}
	n.Routes = max(n.Routes, r.Routes)
	if changed {
		st.putNode(n)
	} else {
		st.nodes = st.nodes.Set(n.Name, n)
	}
	st.reportImages(r.Node, r.Images)
	if r.Complete {
		if first {
			st.adoptLedger(r.Ledger)
		}
		st.adopt(r)
		if first {
			st.hearFrom(r.Node)
			st.welcome(r.Node)
		}
	}
	st.reportVolumes(r)
	st.reportFences(r)
	for i := range r.Statuses {
		st.observe(&r.Statuses[i], r.Node)
	}
	st.measured(r.Node, r.Usage)
	for _, uid := range r.Gone {
		if _, p := st.pod(uid); p != nil && p.Node == r.Node && p.Stop != nil {
			st.forget(uid, "stopped")
		}
	}
	if r.Complete {
		st.inform()
		st.dirtyNodes[r.Node] = true
		if n, _ := st.nodes.Get(r.Node); n.live() != wasLive {
			st.nodeTurned(n)
		}
		st.lastOrFirst(anyLive)
	}
}

// inform notes that a node has reported. What was put in force before that has
// not been carried out yet.
func (st *step) inform() {
	if st.informed {
		return
	}
	st.informed = true
	if st.snapshot == nil {
		return
	}
	st.attach(st.snapshot)
	for k := range keys(st.services) {
		st.dirtyServices[k] = true
	}
}

// adoptLedger takes over what a node kept for a server that lost its record.
// From a node that reported before, it is our own, and may be old.
func (st *step) adoptLedger(ledger []nodes.Decision) {
	if st.recorded || len(ledger) == 0 {
		return
	}
	st.recorded, st.lent = true, true
	if st.snapshot != nil && !st.blind {
		ledger = slices.DeleteFunc(slices.Clone(ledger), func(d nodes.Decision) bool {
			return d.Kind == kindOfForce || d.Kind == kindOfInventory || d.Kind == kindOfNetwork
		})
	}
	st.takeOver(parseRecord(ledger))
	for _, d := range ledger {
		if d.Kind != kindOfPod && len(d.Value) > 0 {
			st.decide(d.Kind, d.Key, d.Value)
		}
	}
	st.missAbsent()
	st.reconsider()
}

// adopt takes over what a node holds. With a record that is what the record
// says; without one, the node's ledger and pods are all that is known.
func (st *step) adopt(r *nodes.Report) {
	held := make(map[nodes.UID]bool, len(r.Held))
	var made []string
	for _, p := range r.Held {
		held[p.UID] = true
		if !st.adoptPod(p, r) {
			made = append(made, "pod "+p.Namespace+"/"+p.Name)
		}
	}
	st.disbelieve(r.Node, made)
	n, _ := st.nodes.Get(r.Node)
	reported := make(map[nodes.UID]bool, len(r.Statuses))
	for i := range r.Statuses {
		reported[r.Statuses[i].UID] = true
	}
	for _, uid := range r.Left {
		// It may run: the node still has to be told to end it. What a Job has counted
		// may be all ended, and is not to begin again.
		held[uid] = !st.counted(uid)
		st.change(uid, func(p *pod) { p.left = true })
	}
	// A pod that is assigned and not reported is one that the agent will report
	// as soon as it has its assignment: it may have lost its store. Until then
	// what was said last holds, or its services would be cut off for that moment.
	// What was told to stop is gone when the node says so, as it does of a pod of
	// which it finds nothing.
	for uid, p := range entries(n.pods) {
		switch {
		case !held[uid] && p.Stop == nil && (st.counted(uid) || st.lost(uid)):
			st.endUnheld(uid)
		case !reported[uid] && p.Stop != nil && !st.counted(uid):
			st.unobserve(uid)
		}
	}
}

// endUnheld has a node end a pod that it does not hold and is not to begin. The
// node may have been told to begin it since it made its report, so the pod is
// gone when the node says so of it.
func (st *step) endUnheld(uid nodes.UID) {
	if !st.counted(uid) { // what a Job has counted stays ended
		st.unobserve(uid)
	}
	_, p := st.pod(uid)
	st.dirtyServicesOf(p)
	st.change(uid, func(p *pod) { p.leaving = cmp.Or(p.leaving, "not on its node any more") })
	st.stop(uid)
}

// unobserve drops a status that a complete report no longer has.
func (st *step) unobserve(uid nodes.UID) {
	g, p := st.pod(uid)
	if p == nil || p.status == nil {
		return
	}
	st.dirtyServicesOf(p)
	st.change(uid, func(p *pod) { p.status = nil })
	st.dirtyGroups[g.key] = true
}

// adoptPod takes over a pod that a report holds and nobody knew of; it reports
// false for one that is not believed.
func (st *step) adoptPod(held *nodes.Pod, r *nodes.Report) bool {
	if _, known := st.pods.Get(held.UID); known || held.Template == nil {
		return true
	}
	if !st.believesPod(held, r) {
		return false
	}
	g := st.groupFor(held.Workload)
	st.yield(g, held)
	if g.succeeded(held) {
		return true
	}
	s := g.set(held.Template.Hash)
	if s == nil {
		s = &set{
			hash: held.Template.Hash, template: held.Template, request: place.Compile(profileOf(held.Workload), held.Namespace, held.Template),
			refs: references(held.Namespace, &held.Template.Spec), content: unknownContent, revision: 1, since: held.Created,
		}
		if len(g.sets) > 0 {
			s.revision = g.sets[len(g.sets)-1].revision + 1
		}
		st.addSet(g, s)
		st.recordSet(g, s)
		st.recordTemplate(g, s)
	}
	n := *held
	n.Template, n.TemplateHash, n.Node = s.template, s.hash, r.Node
	n.Seal = st.config.sealPod(&n, r.Node)
	p := &pod{Pod: &n, set: s, unproven: st.awaited() != ""}
	if _, taken := g.find(p.Incarnation); taken {
		return true
	}
	st.insertPod(g, p)
	st.recordPod(p)
	st.recordWorkload(g)
	st.recordable(g)
	st.act("adopt", p.Key(), r.Node, "the node runs it and the record did not know")
	return true
}

// succeeded reports whether a StatefulSet has another pod of a pod's ordinal on a
// node: it was decided when that one was gone, and an agent that died since had
// not forgotten it.
func (g *group) succeeded(held *nodes.Pod) bool {
	return g.key.Kind == kindStatefulSet && slices.ContainsFunc(g.pods, func(p *pod) bool {
		return p.Name == held.Name && p.UID != held.UID && p.Node != "" && !p.yieldsTo(held)
	})
}

// observe takes in a pod's status.
func (st *step) observe(s *nodes.PodStatus, from string) {
	g, p := st.pod(s.UID)
	if p == nil || p.Node != from {
		return
	}
	before := p.status
	if n, _ := st.nodes.Get(from); n.podCIDR().IsValid() && n.misplaces(p, s) && (before == nil || before.IP != s.IP) {
		st.event(p.Key(), true, "AddressRefused", "Node "+from+" says that the pod's address is "+s.IP+", which is none of the node's: nothing is routed there")
	}
	p = st.change(s.UID, func(p *pod) { p.status = s })
	st.dirtyGroups[g.key] = true
	if before == nil || before.Ready != s.Ready || before.IP != s.IP || before.Done() != s.Done() {
		st.dirtyServicesOf(p)
	}
	if p.done() && !p.released {
		st.change(s.UID, func(p *pod) { p.released = true })
		st.unload(p)
	}
}

// reconsider compares a snapshot that was put in force blindly with the
// inventory that has come to light since.
func (st *step) reconsider() {
	if !st.blind || len(st.inventory) == 0 && st.force.Source == "" {
		return
	}
	blind := st.snapshot
	source := st.base.force.Source
	st.snapshot, st.blind = nil, false
	st.detachAll()
	for o := range blind.All() {
		if _, known := st.inventory[o.Key]; !known {
			st.decide(kindOfInventory, keyText(o.Key), nil)
		}
	}
	st.submit(blind, source)
}

// detachAll forgets which objects the groups have, so that the next snapshot
// attaches them anew.
func (st *step) detachAll() {
	for _, k := range slices.Collect(keys(st.groups)) {
		g := st.edit(k)
		if g.maker == (desired.Key{}) {
			g.object = nil
		}
		st.recordable(g)
	}
}
