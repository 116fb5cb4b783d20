package planner

import (
	"cmp"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/planner/place"
)

// room is what one node would give to a pod if others went.
type room struct {
	node int // among the cluster's
	// victims are those that would have to, the most important first; none where
	// enough are going already.
	victims []*pod
	// broken is how many of them break a PodDisruptionBudget.
	broken int
}

// preempt finds a node where a pod that fits nowhere fits once pods of lower
// priority are gone, has those go, and keeps the room for it meanwhile, by
// Kubernetes' rules: a PodDisruptionBudget is broken only where nothing else helps.
func (st *step) preempt(s *scheduler, p *pod) bool {
	if !preempts(p) || priority(p) <= st.lowestPriority(s) {
		return false
	}
	var best *room
	budgets := st.budgets()
	for i, n := range s.cluster.Nodes {
		if p.aim != "" && p.aim != n.Name() {
			continue
		}
		if r := st.roomOn(s, p, i, budgets); r != nil && (best == nil || r.compare(best) < 0) {
			best = r
		}
	}
	if best == nil {
		return false
	}
	node := s.cluster.Nodes[best.node]
	for _, v := range best.victims {
		st.leave(v.UID, "preempted by pod "+p.Key().String()+", which has a higher priority")
		st.event(v.Key(), false, "Preempted", "Preempted by pod "+string(p.UID)+" on node "+node.Name())
		st.dirtyGroups[v.Workload] = true
		st.madeRoom = true
	}
	s.cluster.Nodes[best.node] = node.With(p.request)
	st.keepsRoom = true
	waits := "waits for pods of lower priority to leave node " + node.Name()
	if p.refusal != waits {
		st.change(p.UID, func(p *pod) { p.refusal = waits })
	}
	return true
}

// preempts reports whether others may have to go for a pod.
func preempts(p *pod) bool {
	policy := p.Template.Spec.PreemptionPolicy
	return p.leaving == "" && (policy == nil || *policy == corev1.PreemptLowerPriority)
}

// lowestPriority is the lowest of all templates: most pods find none below theirs.
func (st *step) lowestPriority(s *scheduler) int32 {
	if s.lowest == nil {
		lowest := int32(0)
		for _, g := range entries(st.groups) {
			for _, set := range g.sets {
				if v := set.template.Spec.Priority; v != nil {
					lowest = min(lowest, *v)
				}
			}
		}
		s.lowest = &lowest
	}
	return *s.lowest
}

// roomOn says what it takes on one node; nil where it would not help.
func (st *step) roomOn(s *scheduler, p *pod, i int, budgets []budget) *room {
	node, gone := s.cluster.Nodes[i], map[nodes.UID]bool{}
	n, found := st.nodes.Get(node.Name())
	if !found {
		return nil
	}
	var lower []*pod
	for uid := range keys(n.pods) {
		_, o := st.pod(uid)
		if o == nil || o.released || priority(o) >= priority(p) {
			continue
		}
		node, gone[uid] = node.Without(o.request), true
		if o.leaving == "" {
			lower = append(lower, o)
		}
	}
	fits := func(node *place.Node) bool {
		c := s.cluster
		c.Nodes = slices.Clone(c.Nodes)
		c.Nodes[i] = node
		c.Neighbours = func() []place.Neighbour { return st.neighboursBut(gone) }
		return place.Fits(p.request, c, node.Name()) == ""
	}
	if len(gone) == 0 || !fits(node) {
		return nil
	}
	slices.SortFunc(lower, compareImportance)
	r := &room{node: i}
	over, within := overBudget(lower, budgets)
	for k, o := range append(over, within...) {
		delete(gone, o.UID)
		if with := node.With(o.request); fits(with) {
			node = with
			continue
		}
		gone[o.UID] = true
		r.victims = append(r.victims, o)
		if k < len(over) {
			r.broken++
		}
	}
	slices.SortFunc(r.victims, compareImportance)
	return r
}

// compareImportance puts first what is to stay: higher priority, then age.
func compareImportance(a, b *pod) int {
	return cmp.Or(cmp.Compare(priority(b), priority(a)), a.Created.Compare(b.Created), compareUID(a.UID, b.UID))
}

// compare prefers the room that costs less: by the budgets that it breaks, by
// the most important victim, by all of them, by their number, by how long they
// have run.
func (r *room) compare(o *room) int {
	if len(r.victims) == 0 || len(o.victims) == 0 {
		return cmp.Compare(len(r.victims), len(o.victims))
	}
	first, other := r.victims[0], o.victims[0]
	return cmp.Or(
		cmp.Compare(r.broken, o.broken),
		cmp.Compare(priority(first), priority(other)),
		cmp.Compare(sumOfPriorities(r.victims), sumOfPriorities(o.victims)),
		cmp.Compare(len(r.victims), len(o.victims)),
		other.Created.Compare(first.Created),
	)
}

// sumOfPriorities is never less for more pods.
func sumOfPriorities(list []*pod) (sum int64) {
	const lowest = -1 << 31
	for _, p := range list {
		sum += int64(priority(p)) - lowest
	}
	return sum
}
