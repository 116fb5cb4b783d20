package planner

import (
	"cmp"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/planner/place"
)

// room is what one node would give to a pod if others went.
type room struct {
	node *place.Node
	// victims are those that would have to, the most important first; none where
	// enough are going already.
	victims []*pod
	// broken is how many of them break a PodDisruptionBudget.
	broken int
}

// maxRooms is how many nodes are compared: Kubernetes' least number of candidates.
const maxRooms = 100

// preempt finds a node where a pod that fits nowhere fits once pods of lower
// priority are gone, has those go, and keeps the room for it meanwhile, by
// Kubernetes' rules: a PodDisruptionBudget is broken only where nothing else helps.
func (s *scheduler) preempt(p *pod, storage place.Storage) bool {
	if !preempts(p) {
		return false
	}
	best := s.bestRoom(p, storage)
	if best == nil {
		return false
	}
	for _, v := range best.victims {
		s.leave(v.UID, "preempted by pod "+p.Key().String()+", which has a higher priority")
		s.event(v.Key(), false, "Preempted", "Preempted by pod "+string(p.UID)+" on node "+best.node.Name())
		s.dirtyGroups[v.Workload] = true
		s.madeRoom = true
	}
	s.field.Promise(best.node.With(p.request), p.request)
	if len(best.victims) > 0 {
		s.field.Renew() // those that leave no longer count in a spread
	}
	s.keepsRoom, s.promised[p.UID] = true, true
	waits := "waits for pods of lower priority to leave node " + best.node.Name()
	if p.refusal != waits {
		s.change(p.UID, func(p *pod) { p.refusal = waits })
	}
	return true
}

// preempts reports whether others may have to go for a pod.
func preempts(p *pod) bool {
	policy := p.Template.Spec.PreemptionPolicy
	return p.leaving == "" && (policy == nil || *policy == corev1.PreemptLowerPriority)
}

// bestRoom compares the nodes that might give room, of many only some.
func (s *scheduler) bestRoom(p *pod, storage place.Storage) (best *room) {
	var budgets []budget
	found := 0
	for n := range s.field.Rooms(p.request, maxRooms) {
		if p.aim != "" && n.Name() != p.aim {
			continue
		}
		if found == 0 {
			budgets = s.budgets()
		}
		found++
		r := s.knownRoom(p, n, storage, budgets)
		if r != nil && (best == nil || r.compare(best) < 0) {
			best = r
		}
		if found >= maxRooms && best != nil || best != nil && len(best.victims) == 0 {
			break
		}
	}
	return best
}

// roomKey is a node as it is now, asked for pods that are alike.
type roomKey struct {
	request *place.Request
	node    *place.Node
}

// knownRoom is roomOn, once for pods that are alike, where nothing but the node's
// own pods can change the answer.
func (s *scheduler) knownRoom(p *pod, on *place.Node, storage place.Storage, budgets []budget) *room {
	if storage != nil || len(budgets) > 0 || !s.field.Alone(p.request) {
		return s.roomOn(p, on, storage, budgets)
	}
	k := roomKey{s.field.Like(p.request), on}
	r, known := s.rooms[k]
	if !known {
		r = s.roomOn(p, on, storage, budgets)
		s.rooms[k] = r
	}
	return r
}

// roomOn says what it takes on one node; nil where it would not help.
func (s *scheduler) roomOn(p *pod, on *place.Node, storage place.Storage, budgets []budget) *room {
	n, found := s.nodes.Get(on.Name())
	if !found {
		return nil
	}
	trial := s.field.Try(p.request, storage, on)
	defer trial.End()
	var lower []*pod
	for uid := range keys(n.pods) {
		_, o := s.pod(uid)
		if o == nil || o.released || priority(o) >= priority(p) {
			continue
		}
		trial.Without(o.request, o.goes())
		if o.leaving == "" {
			lower = append(lower, o)
		}
	}
	if !trial.Fits() {
		return nil
	}
	slices.SortFunc(lower, compareImportance)
	r := &room{node: on}
	over, within := overBudget(lower, budgets)
	for k, o := range append(over, within...) {
		trial.With(o.request, o.goes())
		if trial.Fits() {
			continue
		}
		trial.Without(o.request, o.goes())
		r.victims = append(r.victims, o)
		if k < len(over) {
			r.broken++
		}
	}
	slices.SortFunc(r.victims, compareImportance)
	return r
}

// goes reports whether a pod is on its way out.
func (p *pod) goes() bool { return p.leaving != "" || p.Stop != nil }

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
