package planner

import (
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/proxy"
)

// Overview is what runs against what should. It fills what the planner knows:
// not Serial, Version, Sync, History and Rejected.
func (s *State) Overview(now time.Time) *nodes.Overview {
	o := &nodes.Overview{At: now, Outcome: nodes.OutcomePending, Held: s.held, Problems: []desired.Problem{}}
	if s.snapshot != nil {
		revision := s.snapshot.Revision()
		o.InForce = &revision
		o.Problems = s.snapshot.Problems()
		o.Issuer = s.snapshot.Settings().TokenIssuer()
	}
	converged, failed := s.Settled()
	switch {
	case converged:
		o.Outcome = nodes.OutcomeConverged
	case failed != "":
		o.Outcome = nodes.OutcomeFailed
	}
	for _, n := range entries(s.nodes) {
		o.Nodes = append(o.Nodes, s.nodeOverview(n))
	}
	o.Objects = s.objects()
	for _, svc := range entries(s.services) {
		if svc.object != nil {
			o.Services = append(o.Services, svc.overview())
		}
	}
	waiting := slices.Collect(s.waits())
	o.Plan = nodes.PlanOverview{
		Difference: s.differences, Actions: s.actions, Waiting: waiting,
		Converged: converged && len(waiting) == 0 && s.troubled == 0,
	}
	return o
}

// waits is all that something waits for.
func (s *State) waits() iter.Seq[nodes.WaitingItem] {
	return func(yield func(nodes.WaitingItem) bool) {
		for k := range keys(s.active) {
			if g, ok := s.groups.Get(k); ok && !each(g.waiting, yield) {
				return
			}
		}
		_ = each(s.storageWaits, yield) && s.routeWaits(yield) && each(s.drainWaits(), yield)
	}
}

func each[T any](items []T, yield func(T) bool) bool {
	for _, item := range items {
		if !yield(item) {
			return false
		}
	}
	return true
}

// WorkloadProgress is how far one workload has come, or a node with its routes.
type WorkloadProgress struct {
	Object desired.Key
	// Line is what a push prints about it.
	Line   string
	Health nodes.Health
}

// Progress has one entry for each workload that is not where it should be, and
// for each node that takes its time to route to them.
func (s *State) Progress() []WorkloadProgress {
	var out []WorkloadProgress
	for k := range keys(s.active) {
		if g, ok := s.groups.Get(k); ok && g.line != "" {
			out = append(out, WorkloadProgress{Object: k, Line: clean(g.line), Health: g.verdict.Health})
		}
	}
	if s.troubled > 0 {
		for k, svc := range entries(s.services) {
			if svc.problem != "" {
				out = append(out, WorkloadProgress{Object: k, Line: clean(k.String() + ": " + svc.problem), Health: nodes.Degraded})
			}
		}
	}
	return append(out, s.slowRoutes()...)
}

// Settled says how the revision in force ended: converged and healthy, every
// live node routing to what it made, or failed with one sentence. It is neither
// while something that it changed is in progress. What failed before the
// revision, and is not changed by it, does not decide how it ends.
func (s *State) Settled() (converged bool, failed string) {
	done, failed := s.carriedOut()
	if !done {
		return false, failed
	}
	return s.routesInForce(), s.lateRoutes()
}

// carriedOut is Settled for all but the nodes' routes.
func (s *State) carriedOut() (done bool, failed string) {
	if s.snapshot == nil {
		return false, ""
	}
	failed = s.conflict()
	waits, progresses := false, false
	for k := range keys(s.active) {
		g, ok := s.groups.Get(k)
		switch {
		case !ok, !s.answersFor(g):
		case g.verdict.Late:
			if failed == "" && !g.lateSince.Before(s.force.Since) {
				failed = clean(k.String() + ": " + g.verdict.Reason)
			}
		case len(g.waiting) > 0:
			waits = true
			progresses = progresses || s.progresses(g)
		}
	}
	if progresses {
		failed = ""
	}
	waits = waits || len(s.storageWaits) > 0 || s.drains()
	return failed == "" && !waits && (s.informed || s.groups.Len() == 0), failed
}

// answersFor reports whether the revision in force can end by what becomes of a
// group. A Job has one end, and it is that of the revision that brought the run
// about; what a schedule started is no revision's.
func (s *State) answersFor(g *group) bool {
	if g.maker != (desired.Key{}) {
		return false
	}
	return g.run == nil || g.object == nil || !g.revised.Before(s.force.Since)
}

// progresses reports whether the revision in force altered a group that is not
// yet where it should be; one that is paused goes nowhere.
func (s *State) progresses(g *group) bool {
	return g.object != nil && !g.settled() && g.verdict.Health != nodes.Suspended && !g.revised.Before(s.force.Since)
}

// conflict is the first problem of a service that the revision in force
// answers for; empty when there is none.
func (s *State) conflict() string {
	if s.troubled == 0 {
		return ""
	}
	for k, svc := range entries(s.services) {
		if svc.problem != "" && !svc.since.Before(s.force.Since) {
			return clean(k.String() + ": " + svc.problem)
		}
	}
	return ""
}

// objects lists everything of the revision in force with what we made for it,
// and groups that are on their way out.
func (s *State) objects() []nodes.ObjectHealth {
	out := make([]nodes.ObjectHealth, 0, 2*s.pods.Len()+s.groups.Len())
	if s.snapshot != nil {
		out = slices.Grow(out, s.snapshot.Len())
		for o := range s.snapshot.All() {
			if g, ok := s.groups.Get(o.Key); ok {
				out = append(out, s.groupHealth(g, o)...)
				continue
			}
			h := nodes.ObjectHealth{Key: o.Key, From: o.From, Health: nodes.Healthy}
			if svc, ok := s.services.Get(o.Key); ok {
				h.Health, h.Reason = svc.health()
			} else if sc, ok := s.scalers.Get(o.Key); ok {
				h.Health, h.Reason = s.scalerHealth(sc)
				h.Autoscaler = s.scalerOverview(sc)
			} else {
				s.storageHealth(&h)
				s.machineHealth(&h)
			}
			out = append(out, h)
		}
	}
	for k, g := range entries(s.groups) {
		if g.object == nil || !s.inGit(k) {
			out = append(out, s.groupHealth(g, nil)...)
		}
	}
	return append(out, s.ownStorage()...)
}

// groupHealth is that of a workload, then of its ReplicaSets, then of their pods.
func (s *State) groupHealth(g *group, o *desired.Object) []nodes.ObjectHealth {
	v := g.verdict
	top := nodes.ObjectHealth{
		Key: g.key, Health: v.Health, Reason: v.Reason, Created: g.created,
		Wanted: v.Wanted, Current: v.Current, Updated: v.Updated, Ready: v.Ready, Available: v.Available,
	}
	if top.Health == "" {
		top.Health, top.Reason = nodes.Progressing, "waiting for a node to report"
	}
	if o != nil {
		top.From = o.From
	}
	if g.current != nil {
		top.Template = g.current.hash
	}
	top.Job, top.CronJob = g.jobOverview(), g.cronOverview()
	var out []nodes.ObjectHealth
	top.Owner = g.maker
	if len(g.pods) > 0 && g.pods[0].bare() {
		// The pod is the object itself: one entry, with the pod that stays.
		i := slices.IndexFunc(g.pods, func(p *pod) bool { return p.leaving == "" })
		top.Pod = s.podOverview(g.pods[max(0, i)])
		return append(out, top)
	}
	out = append(out, top)
	for _, set := range g.sets {
		if g.owner(set) != g.key {
			out = append(out, s.setHealth(g, set))
		}
	}
	for _, p := range g.pods {
		out = append(out, s.podHealth(p))
	}
	return out
}

func (s *State) setHealth(g *group, set *set) nodes.ObjectHealth {
	h := nodes.ObjectHealth{Key: g.owner(set), Owner: g.key, Health: nodes.Healthy, Template: set.hash, Created: set.since}
	for _, p := range g.pods {
		if p.set.hash != set.hash || p.leaving != "" {
			continue
		}
		h.Current++
		h.Wanted++
		if p.serving() && !s.unreachable(p) {
			h.Ready++
		}
	}
	if h.Ready < h.Wanted {
		h.Health = nodes.Progressing
		h.Reason = fmt.Sprintf("%d of %s ready", h.Ready, count(h.Wanted, "pod"))
	}
	return h
}

func (s *State) podHealth(p *pod) nodes.ObjectHealth {
	h := nodes.ObjectHealth{Key: p.Key(), Owner: p.Owner, Health: nodes.Healthy, Created: p.Created, Template: p.TemplateHash, Pod: s.podOverview(p)}
	switch {
	case p.lost == certain && s.unreachable(p):
		h.Health, h.Reason = nodes.Progressing, "Terminating: "+p.leaving
	case p.lost == givenUp && s.unreachable(p):
		h.Health, h.Reason = nodes.Progressing, "Terminating: "+p.leaving+"; it is stopped when its node is back"
	case p.departs != "" && p.leaving == "":
		h.Health, h.Reason = nodes.Progressing, clause("to be evicted, "+p.departs, p.held)
	case p.done(), p.Stop != nil, p.leaving != "":
	case s.unreachable(p):
		h.Health, h.Reason = nodes.Degraded, clause("not ready", clause("NodeLost: node "+p.Node+" does not answer", p.held))
	}
	if h.Health != nodes.Healthy {
		return h
	}
	switch {
	case p.Stop != nil:
		h.Health, h.Reason = nodes.Progressing, "Terminating: "+p.Stop.Reason
	case p.leaving != "":
		h.Health, h.Reason = nodes.Progressing, "Terminating: leaves the routes first: "+p.leaving
	case p.status != nil && p.status.Phase == corev1.PodFailed:
		h.Health, h.Reason = nodes.Degraded, clause("Failed", why(p))
	case p.status != nil && (p.status.Ready || p.status.Phase == corev1.PodSucceeded):
	case p.Node == "":
		h.Health, h.Reason = nodes.Progressing, clause("Pending", why(p))
	default:
		h.Health, h.Reason = nodes.Progressing, clause("not ready", why(p))
	}
	return h
}

// unreachable reports whether a pod's node is not heard of, while others are.
func (s *State) unreachable(p *pod) bool {
	n, _ := s.nodes.Get(p.Node)
	return n.silent() && s.anyLive()
}

func (s *State) podOverview(p *pod) *nodes.PodOverview {
	o := &nodes.PodOverview{UID: p.UID, Node: p.Node, Revision: p.Revision, Stopping: p.leaving != "" || p.Stop != nil}
	o.Status.UID, o.Status.Phase = p.UID, corev1.PodPending
	if p.status != nil {
		o.Status = *p.status
		if n, _ := s.nodes.Get(p.Node); n.misplaces(p, p.status) {
			o.Status.IP = ""
		}
		o.IP = o.Status.IP
	}
	if n, _ := s.nodes.Get(p.Node); s.unreachable(p) && !n.routed() && !p.done() && o.Status.Ready {
		o.Status.Ready, o.Status.ReadySince = false, n.Since
		o.Status.Reason, o.Status.Message = "NodeLost", "Node "+p.Node+" which was running pod "+p.Name+" is unresponsive"
	}
	for i := range p.Template.Spec.Containers {
		o.Images = append(o.Images, p.Template.Spec.Containers[i].Image)
	}
	return o
}

func (s *service) health() (nodes.Health, string) {
	v, _ := s.object.Value.(*corev1.Service)
	switch {
	case s.problem != "":
		return nodes.Degraded, s.problem
	case v != nil && v.Spec.Type == corev1.ServiceTypeLoadBalancer:
		return nodes.Healthy, "external address pending: nothing here hands them out; its node ports work"
	default:
		return nodes.Healthy, ""
	}
}

func (s *service) overview() nodes.ServiceOverview {
	v, _ := s.object.Value.(*corev1.Service)
	o := nodes.ServiceOverview{Key: s.key, Type: string(v.Spec.Type)}
	if o.Type == "" {
		o.Type = string(corev1.ServiceTypeClusterIP)
	}
	switch {
	case v.Spec.Type == corev1.ServiceTypeExternalName:
		o.External = v.Spec.ExternalName
	case v.Spec.Type == corev1.ServiceTypeLoadBalancer:
		o.External = "pending"
	}
	if s.entry == nil {
		return o
	}
	for _, a := range s.entry.ClusterIPs {
		o.ClusterIPs = append(o.ClusterIPs, a.String())
	}
	if s.entry.Headless {
		o.ClusterIPs = []string{corev1.ClusterIPNone}
	}
	o.HealthCheckPort = s.entry.HealthCheckPort
	for i, p := range s.entry.Ports {
		o.Ports = append(o.Ports, servicePort(p, s.notReady[i]))
	}
	return o
}

func servicePort(p proxy.Port, notReady int) nodes.ServicePort {
	out := nodes.ServicePort{Name: p.Name, Protocol: string(p.Protocol), Port: p.Port, NodePort: p.NodePort, Endpoints: []string{}, NotReady: notReady}
	for _, e := range p.Endpoints {
		text := e.Addr.String()
		if e.Port != 0 {
			text = netip.AddrPortFrom(e.Addr, e.Port).String()
		}
		out.Endpoints = append(out.Endpoints, text)
	}
	return out
}
