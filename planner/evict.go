package planner

import (
	"fmt"
	"strings"
	"time"

	policyv1 "k8s.io/api/policy/v1"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/planner/place"
	"github.com/tallyman-dev/tallyman/planner/workload"
)

// drainMercy is how long a pod that is to leave its node waits for another to
// take its place first, or for the one before it to be up again.
const drainMercy = workload.DefaultDeadline

// markDepartures notes which pods are to leave a node that answers: those whose
// time with one of its taints is over. A DaemonSet sees to those that do not
// tolerate it at all, and makes others anew, as in Kubernetes, for their node is
// still one that it is for.
func (st *step) markDepartures(n *node) {
	if n.look.IsZero() || n.look.After(st.now) {
		return
	}
	look := time.Time{}
	for uid := range keys(n.pods) {
		g, p := st.pod(uid)
		if p == nil || p.done() {
			continue
		}
		at, taint, ok := departure(p, n, 0)
		switch {
		case g.key.Kind == kindDaemonSet && !stays(p, n):
		case ok && at.After(st.now):
			if look.IsZero() || at.Before(look) {
				look = at
			}
			st.markDeparture(p, "")
		case ok:
			st.markDeparture(p, "node "+n.Name+" has taint "+taint)
		default:
			st.markDeparture(p, "")
		}
	}
	n = st.nodeFor(n.Name)
	n.look = look
	st.nodes = st.nodes.Set(n.Name, n)
}

// stays reports whether a pod of a DaemonSet may run on a node for some time.
func stays(p *pod, n *node) bool {
	_, stays := place.Eligible(p.request, n.load)
	return stays
}

// lookFor has a node looked at when a pod that was bound to it is to leave again.
func (st *step) lookFor(p *pod) {
	if _, evicts := st.tainted.Get(p.Node); !evicts {
		return
	}
	n := st.nodeFor(p.Node)
	at, _, leaves := departure(p, n, 0)
	if soon := st.now.Add(time.Second); at.Before(soon) {
		at = soon // or it would come and go without end
	}
	if leaves && (n.look.IsZero() || at.Before(n.look)) {
		n.look = at
		st.nodes = st.nodes.Set(n.Name, n)
	}
}

// stayPut takes back that pods are to leave a node.
func (st *step) stayPut(n *node) {
	for uid := range keys(n.pods) {
		if _, p := st.pod(uid); p != nil {
			st.markDeparture(p, "")
			if p.held != "" {
				st.holdBack(p, "")
			}
		}
	}
}

func (st *step) markDeparture(p *pod, why string) {
	if p.departs == why || why != "" && p.leaving != "" {
		return
	}
	st.change(p.UID, func(p *pod) {
		p.departs, p.held = why, ""
		if p.departing.IsZero() || why == "" {
			p.departing = st.now
		}
	})
	if why == "" {
		st.departing = st.departing.Delete(p.UID)
	} else {
		st.departing = st.departing.Set(p.UID, struct{}{})
	}
	st.dirtyGroups[p.Workload] = true
}

// evict takes pods from nodes that are drained, as far as PodDisruptionBudgets
// allow: one after the other. Those of Deployments are replaced first where
// that is possible, and go by the rules of their rollout.
func (st *step) evict() {
	for _, uid := range keysOf(st.departing) {
		g, p := st.pod(uid)
		if p == nil || p.leaving != "" {
			st.departing = st.departing.Delete(uid)
			continue
		}
		if n, _ := st.nodes.Get(p.Node); !n.live() {
			continue
		}
		why := st.awaits(g, p)
		if why == "" {
			why = st.spared(p)
		}
		if why != "" {
			st.holdBack(p, why)
			continue
		}
		st.departing = st.departing.Delete(uid)
		st.leave(uid, "drained: "+p.departs)
		st.dirtyGroups[g.key] = true
	}
}

// awaits says what is to happen to a pod's workload before it is evicted.
func (st *step) awaits(g *group, p *pod) string {
	if g.object == nil || !st.now.Before(p.departing.Add(drainMercy)) {
		return ""
	}
	switch {
	case st.replacesFirst(g):
		for _, o := range g.pods {
			if o.Node == "" && o.leaving == "" && o.refusal != "" {
				return "" // there is no room for another before this one has gone
			}
		}
		return "another takes its place first"
	case g.key.Kind == kindStatefulSet:
		for _, o := range g.pods {
			young := st.now.Before(o.Created.Add(drainMercy))
			if o != p && o.lost == "" && (o.leaving != "" || young && !o.serving() && o.departs == "") {
				return "pod " + o.Name + " is not up yet"
			}
		}
		if len(g.pods) < int(replicas(statefulSets{}.spec(g.object).Replicas)) {
			return "a pod of its StatefulSet is missing"
		}
	}
	return ""
}

// replacesFirst reports whether a workload's pods are replaced before they
// leave a node.
func (st *step) replacesFirst(g *group) bool {
	if g.object == nil || g.current == nil {
		return false
	}
	switch k := g.kind().(type) {
	case deployments:
		r := workload.Deployment(k.spec(g.object))
		return !r.Paused && !r.Recreate
	case replicaSets:
		return true
	}
	return false
}

// relocate takes pods that are to leave their node for pods of an earlier
// template: the rollout replaces them within its bounds.
func (st *step) relocate(g *group, r workload.Rollout) workload.Rollout {
	if st.departing.Len() == 0 || !st.replacesFirst(g) {
		return r
	}
	var old []*workload.Set
	split := func(s *workload.Set) {
		var stay, go_ []workload.Pod
		for _, p := range s.Pods {
			if _, departs := st.departing.Get(p.UID); departs {
				go_ = append(go_, p)
			} else {
				stay = append(stay, p)
			}
		}
		if len(go_) > 0 {
			s.Pods = stay
			old = append(old, &workload.Set{Hash: s.Hash, Since: s.Since, Pods: go_})
		}
	}
	for _, s := range r.Old {
		split(s)
	}
	split(r.Current)
	r.Old = append(old, r.Old...)
	return r
}

// within leaves out what a PodDisruptionBudget does not allow of the pods that
// are to leave their node.
func (st *step) within(steps workload.Steps) workload.Steps {
	if st.departing.Len() == 0 {
		return steps
	}
	var removes []workload.Remove
	gone := map[nodes.UID]bool{}
	for _, r := range steps.Removes {
		if _, departs := st.departing.Get(r.UID); !departs {
			removes = append(removes, r)
			continue
		}
		_, p := st.pod(r.UID)
		if why := st.sparedBut(p, gone); why != "" {
			st.holdBack(p, why)
			continue
		}
		gone[p.UID] = true
		r.Reason = "drained: " + p.departs
		removes = append(removes, r)
	}
	steps.Removes = removes
	return steps
}

// spared says which PodDisruptionBudget keeps a pod from being evicted, by the
// rules of Kubernetes' eviction.
func (st *step) spared(p *pod) string { return st.sparedBut(p, nil) }

// sparedBut counts some pods as gone already.
func (st *step) sparedBut(p *pod, gone map[nodes.UID]bool) string {
	if p.status == nil || p.done() || p.status.Phase != "Running" {
		return ""
	}
	for _, b := range st.protections() {
		if !b.covers(p) {
			continue
		}
		expected, serving := st.measure(&b.budget, gone)
		must := mustServe(b.spec, expected)
		healthy := p.status.Ready
		always := b.spec.UnhealthyPodEvictionPolicy != nil && *b.spec.UnhealthyPodEvictionPolicy == policyv1.AlwaysAllow
		switch {
		case !healthy && (always || serving >= must && must > 0):
		case serving-must < 1:
			return fmt.Sprintf("PodDisruptionBudget %s/%s needs %d of its %s ready, and %d are", b.namespace, b.name, must, count(expected, "pod"), serving)
		}
	}
	return ""
}

// drains reports whether a node that answers still has pods to leave it.
func (s *State) drains() bool {
	for uid := range keys(s.departing) {
		if _, p := s.pod(uid); p != nil && p.departs != "" {
			return true
		}
	}
	return false
}

// drainWaits tell how far the nodes are that are drained.
func (s *State) drainWaits() (out []nodes.WaitingItem) {
	for name := range keys(s.tainted) {
		n, ok := s.nodes.Get(name)
		if !ok || !n.live() {
			continue
		}
		if d := s.drain(n); d.left > 0 {
			out = append(out, nodes.WaitingItem{Object: nodeKey(name), Reason: d.String()})
		}
	}
	return out
}

// drain is how far a node is drained.
type drain struct {
	// left are the pods that are still to leave it, of all that were to; held names
	// those that can't, and why.
	left, all int
	held      []string
}

func (s *State) drain(n *node) (d drain) {
	for uid := range keys(n.pods) {
		_, p := s.pod(uid)
		switch {
		case p == nil:
		case p.departs != "":
			d.left++
			if p.held != "" {
				d.held = append(d.held, "pod "+p.Namespace+"/"+p.Name+": "+p.held)
			}
		}
	}
	d.all = d.left + n.departed
	return d
}

// maxHeld bounds what one sentence lists.
const maxHeld = 3

func (d drain) String() string {
	text := fmt.Sprintf("is drained: %d of %s left", d.left, count(d.all, "pod"))
	if len(d.held) == 0 {
		return text
	}
	shown := d.held[:min(maxHeld, len(d.held))]
	text += "; " + strings.Join(shown, "; ")
	if more := len(d.held) - len(shown); more > 0 {
		text += fmt.Sprintf("; and %d more", more)
	}
	return clean(text)
}
