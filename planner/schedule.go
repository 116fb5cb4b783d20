package planner

import (
	"slices"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/planner/place"
	"github.com/tallyman-dev/tallyman/planner/storage"
)

// scheduler places the pods of one step.
type scheduler struct {
	*step
	field   *place.Field
	company *company
	// refused are the pods that no node takes, by what they ask for.
	refused map[alike]*refused
	// promised are the pods for which room is kept.
	promised map[nodes.UID]bool
	// rooms are those found for pods of higher priority.
	rooms map[roomKey]*room
}

// alike tells apart pods that a node may answer differently.
type alike struct {
	request *place.Request
	aim     string
	// claims tells pods apart whose claims differ.
	claims string
}

type refused struct {
	pods   []nodes.UID
	demand *storage.Demand
	// hopeless is set when no others would have to go for them either.
	hopeless bool
}

// schedule finds nodes for new pods, and for waiting ones that something
// happened for. A pod that is bound may help others: those are asked again.
func (st *step) schedule() {
	queue := st.inOrder(append(st.helped(), st.fresh...))
	changed := len(st.stir.rooms) > 0 && st.pending.Len() > 0
	fresh := st.fresh
	st.fresh, st.stir = nil, newStir()
	if len(queue) == 0 && !changed {
		return
	}
	st.keepsRoom = false
	s := st.newScheduler()
	for len(queue) > 0 {
		for i := range queue {
			if g, p := st.pod(queue[i].uid); p != nil && p.Node == "" && !s.promised[p.UID] {
				s.place(g, p)
			}
		}
		queue = s.again()
	}
	s.explain()
	for _, uid := range fresh {
		if _, p := st.pod(uid); p != nil {
			st.wait(p)
		}
	}
	s.renew()
}

func (st *step) newScheduler() *scheduler {
	s := &scheduler{step: st, company: &company{step: st}, refused: map[alike]*refused{}, promised: map[nodes.UID]bool{}, rooms: map[roomKey]*room{}}
	list := make([]*place.Node, 0, st.nodes.Len())
	for _, n := range entries(st.nodes) {
		list = append(list, n.load)
	}
	options := place.Options{Particular: st.particular > 0, NamespaceLabels: st.namespaceLabels, Company: s.company, Images: s.imagesNamed}
	if st.snapshot.Settings().Placement == "spread" {
		options.Strategy = place.Spread
	}
	s.field = place.NewField(list, options)
	return s
}

// gated is what Kubernetes says of a pod with scheduling gates. Nobody removes
// them but a change in Git.
const gated = "SchedulingGated: Scheduling is blocked due to non-empty scheduling gates"

func (s *scheduler) place(g *group, p *pod) {
	if len(p.Template.Spec.SchedulingGates) > 0 {
		if p.refusal != gated {
			s.change(p.UID, func(p *pod) { p.refusal = gated })
		}
		return
	}
	demand, why := s.demandOf(p)
	if why != "" {
		s.refuse(p, why)
		return
	}
	s.company.of = g
	like := s.alike(p, demand)
	known := s.refused[like]
	if known == nil {
		if name, fits := s.choose(p, s.storage(demand)); fits {
			s.take(demand, name)
			s.bind(p, name)
			return
		}
		known = &refused{demand: demand}
		s.refused[like] = known
	}
	if !known.hopeless && s.preempt(p, s.storage(demand)) {
		return
	}
	known.hopeless = true
	known.pods = append(known.pods, p.UID)
}

// storage asks the nodes about a pod's claims.
func (s *scheduler) storage(d *storage.Demand) place.Storage {
	if d == nil {
		return nil
	}
	return func(n *place.Node) string {
		_, why := d.Fit(s.storageNode(n))
		return why
	}
}

// choose finds the best node for a pod, or asks the one that it is for.
func (s *scheduler) choose(p *pod, storage place.Storage) (name string, fits bool) {
	if p.aim == "" {
		return s.field.Choose(p.request, storage)
	}
	return p.aim, s.field.Fits(p.request, storage, p.aim) == ""
}

// again are the pods that wait and that one bound since may help.
func (s *scheduler) again() []candidate {
	defer func() { s.stir = newStir() }()
	if len(s.stir.came) == 0 {
		return nil
	}
	out := s.affected()
	for like, r := range s.refused {
		if s.stir.claims && r.demand != nil || s.stir.helps(like.request, s.namespaceLabels) {
			out = append(out, r.pods...)
			delete(s.refused, like)
		}
	}
	return s.inOrder(out)
}

// explain tells the pods that wait why.
func (s *scheduler) explain() {
	list := make([]*refused, 0, len(s.refused))
	for _, r := range s.refused {
		if len(r.pods) > 0 {
			list = append(list, r)
		}
	}
	slices.SortFunc(list, func(a, b *refused) int { return compareUID(a.pods[0], b.pods[0]) })
	for _, r := range list {
		why := ""
		for _, uid := range r.pods {
			g, p := s.pod(uid)
			if p == nil || p.Node != "" {
				continue
			}
			if why == "" {
				s.company.of = g
				why = s.why(p, r.demand)
			}
			s.refuse(p, why)
		}
	}
}

// maxRenewed bounds the pods of which the words are renewed in a step that
// changes what nodes have left, but doesn't help them.
const maxRenewed = 64

// renew tells anew why the pods wait that were not looked at in this step.
func (s *scheduler) renew() {
	known, left := map[alike]string{}, maxRenewed
	for w := range keys(s.pending) {
		p := s.waitingPod(w)
		if left--; left < 0 {
			return
		}
		if p == nil || s.promised[p.UID] || len(p.Template.Spec.SchedulingGates) > 0 {
			continue
		}
		demand, why := s.demandOf(p)
		like := s.alike(p, demand)
		if s.refused[like] != nil {
			continue
		}
		if why == "" {
			if why = known[like]; why == "" {
				s.company.of, _ = s.pod(p.UID)
				why = s.why(p, demand)
				known[like] = why
			}
		}
		if why != "" && p.refusal != why {
			s.change(p.UID, func(p *pod) { p.refusal = why })
		}
	}
}

func (s *scheduler) alike(p *pod, demand *storage.Demand) alike {
	like := alike{request: s.field.Like(p.request), aim: p.aim}
	if demand != nil {
		like.claims = demand.Key()
	}
	return like
}

func (s *scheduler) why(p *pod, demand *storage.Demand) string {
	if p.aim != "" {
		return s.field.Fits(p.request, s.storage(demand), p.aim)
	}
	return s.field.Refusal(p.request, s.storage(demand))
}

func (st *step) refuse(p *pod, refusal string) {
	if p.refusal == refusal {
		return
	}
	st.change(p.UID, func(p *pod) { p.refusal = refusal })
	st.event(p.Key(), true, "FailedScheduling", refusal)
}

// take carries out what a pod's claims get on the node that was chosen for it.
func (s *scheduler) take(d *storage.Demand, name string) {
	if d == nil {
		return
	}
	choices, _ := d.Fit(s.storageNode(s.field.Node(name)))
	s.carryChoices(choices, name)
	s.stir.claims = s.stir.claims || len(choices) > 0
}

// bind decides on a pod's node.
func (s *scheduler) bind(p *pod, name string) {
	p = s.change(p.UID, func(p *pod) {
		n := *p.Pod
		n.Node, n.Seal = name, s.config.sealPod(p.Pod, name)
		p.Pod, p.refusal = &n, ""
	})
	s.pending = s.pending.Delete(waiterOf(p))
	s.bindTo(p)
	s.hold(p.claims...)
	s.give(p)
	s.lookFor(p)
	n, _ := s.nodes.Get(name)
	s.field.Put(n.load, p.request)
	s.stirred(p.request)
	s.recordPod(p)
	s.act("start", p.Key(), name, "")
	s.event(p.Key(), false, "Scheduled", "Successfully assigned "+p.Namespace+"/"+p.Name+" to "+name)
}

// profileOf says how the pods of a workload are placed.
func profileOf(workload desired.Key) place.Profile {
	switch workload.Kind {
	case kindJob, kindCronJob:
		return place.Batch
	case kindDaemonSet:
		return place.System
	}
	return place.Services
}
