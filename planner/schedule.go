package planner

import (
	"cmp"
	"slices"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/planner/place"
)

// scheduler places the pods of one step. Identical pods share a refusal.
type scheduler struct {
	cluster place.Cluster
	refused map[refusalKey]string
	// hopeless are those for which no others need to go.
	hopeless map[refusalKey]bool
	// lowest is the lowest priority of all pods; nil until somebody asks.
	lowest *int32
}

// refusalKey tells pods that any node answers alike.
type refusalKey struct {
	request *place.Request
	aim     string
	// claims tells pods apart whose claims differ.
	claims string
}

// schedule finds nodes for new pods, and for waiting ones when something
// happened that may help.
func (st *step) schedule() {
	queue := slices.Clone(st.fresh)
	if st.retry || st.keepsRoom {
		// For whom room was made comes before whoever is new.
		st.keepsRoom = false
		queue = slices.Collect(keys(st.pending))
		slices.SortFunc(queue, st.compareAge)
	}
	if len(queue) == 0 {
		return
	}
	slices.SortStableFunc(queue, st.comparePriority)
	s := st.newScheduler()
	for _, uid := range queue {
		if g, p := st.pod(uid); p != nil && p.Node == "" {
			st.placePod(s, g, p)
		}
	}
}

// comparePriority lets pods of higher priority choose first.
func (s *State) comparePriority(a, b nodes.UID) int {
	_, pa := s.pod(a)
	_, pb := s.pod(b)
	return cmp.Compare(priority(pb), priority(pa))
}

// priority of a pod; one that is gone again, or says nothing, has 0.
func priority(p *pod) int32 {
	if p == nil || p.set.template.Spec.Priority == nil {
		return 0
	}
	return *p.set.template.Spec.Priority
}

// compareAge lets the pod that waits longest choose first.
func (s *State) compareAge(a, b nodes.UID) int {
	ga, pa := s.pod(a)
	gb, pb := s.pod(b)
	if c := pa.Created.Compare(pb.Created); c != 0 {
		return c
	}
	if c := ga.key.Compare(gb.key); c != 0 {
		return c
	}
	return int(pa.Incarnation) - int(pb.Incarnation)
}

func (st *step) newScheduler() *scheduler {
	s := &scheduler{refused: map[refusalKey]string{}, hopeless: map[refusalKey]bool{}}
	for _, n := range entries(st.nodes) {
		s.cluster.Nodes = append(s.cluster.Nodes, n.load)
	}
	s.cluster.NamespaceLabels = st.namespaceLabels
	s.cluster.Neighbours = st.neighbours
	return s
}

// neighbours are the pods that are bound and have not ended.
func (st *step) neighbours() []place.Neighbour { return st.neighboursBut(nil) }

func (st *step) neighboursBut(gone map[nodes.UID]bool) []place.Neighbour {
	var out []place.Neighbour
	for name, n := range entries(st.nodes) {
		for uid := range keys(n.pods) {
			if _, p := st.pod(uid); p != nil && !p.released && !gone[uid] {
				out = append(out, place.Neighbour{Node: name, Request: p.request, Leaving: p.leaving != "" || p.Stop != nil})
			}
		}
	}
	return out
}

// gated is what Kubernetes says of a pod with scheduling gates. Nobody removes
// them but a change in Git.
const gated = "SchedulingGated: Scheduling is blocked due to non-empty scheduling gates"

func (st *step) placePod(s *scheduler, g *group, p *pod) {
	if len(p.Template.Spec.SchedulingGates) > 0 {
		if p.refusal != gated {
			st.change(p.UID, func(p *pod) { p.refusal = gated })
		}
		return
	}
	demand, why := st.demandOf(p)
	if why != "" {
		st.refuse(p, why)
		return
	}
	s.cluster.Repelled = st.repelling > 0
	alike := refusalKey{request: p.set.request, aim: p.aim}
	s.cluster.Storage = nil
	if demand != nil {
		alike.claims = demand.Key()
		s.cluster.Storage = func(n *place.Node) string {
			_, why := demand.Fit(st.storageNode(n))
			return why
		}
	}
	if s.cluster.Repelled || p.request.Social() {
		alike.request = p.request
	}
	refusal, known := s.refused[alike]
	if !known {
		var name string
		if name, refusal = s.choose(p); refusal == "" {
			st.take(s, demand, name)
			st.bind(s, p, name)
			return
		}
		s.refused[alike] = refusal
	}
	if !s.hopeless[alike] && st.preempt(s, p) {
		return
	}
	s.hopeless[alike] = true
	st.refuse(p, refusal)
}

func (st *step) refuse(p *pod, refusal string) {
	if p.refusal == refusal {
		return
	}
	st.change(p.UID, func(p *pod) { p.refusal = refusal })
	st.event(p.Key(), true, "FailedScheduling", refusal)
}

// choose finds the best node for a pod, or asks the one that it is for.
func (s *scheduler) choose(p *pod) (name, refusal string) {
	if p.aim == "" {
		return place.Choose(p.request, s.cluster)
	}
	return p.aim, place.Fits(p.request, s.cluster, p.aim)
}

// bind decides on a pod's node.
func (st *step) bind(s *scheduler, p *pod, name string) {
	p = st.change(p.UID, func(p *pod) {
		n := *p.Pod
		n.Node = name
		p.Pod, p.refusal = &n, ""
	})
	st.pending = st.pending.Delete(p.UID)
	st.bindTo(p)
	n, _ := st.nodes.Get(name)
	for i := range s.cluster.Nodes {
		if s.cluster.Nodes[i].Name() == name {
			s.cluster.Nodes[i] = n.load
		}
	}
	if p.request.Social() {
		clear(s.refused)
		clear(s.hopeless)
	}
	st.recordPod(p)
	st.act("start", p.Key(), name, "")
	st.event(p.Key(), false, "Scheduled", "Successfully assigned "+p.Namespace+"/"+p.Name+" to "+name)
}
