package planner

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes"
)

// nodeOverview is a node with what runs on it and what is special about it.
func (s *State) nodeOverview(n *node) nodes.NodeOverview {
	o := nodes.NodeOverview{NodeState: n.shown()}
	for uid := range keys(n.pods) {
		if _, p := s.pod(uid); p != nil && !p.released {
			cpu, memory := p.request.Asks()
			o.Pods++
			o.RequestedCPU += cpu
			o.RequestedMemory += memory
		}
	}
	if n.state.Unschedulable {
		o.Notes = append(o.Notes, "is cordoned: no new pods")
	}
	if n.rangeTrouble != "" && (n.podCIDR() != n.PodCIDR || !n.podCIDR().IsValid()) {
		o.Notes = append(o.Notes, n.rangeTrouble)
	}
	d := s.drain(n)
	o.Leaving = d.left
	switch storm := s.storm(n); {
	case n.live() && declaredDead(n.state.Taints):
		o.Notes = append(o.Notes, "answers, so the taint "+corev1.TaintNodeOutOfService+" only drains it; remove it from its manifest")
	case n.silent() && n.outOfService():
		o.Notes = append(o.Notes, "is out of service: all that it ran counts as gone")
	case n.silent() && storm != "":
		o.Notes = append(o.Notes, storm+": the fault may be elsewhere, so nothing is given up")
	}
	if d.left > 0 {
		o.Notes = append(o.Notes, d.String())
	}
	return o
}

// machineHealth fills in how a Node of Git is doing.
func (s *State) machineHealth(h *nodes.ObjectHealth) {
	if h.Key.Kind != kindNode || h.Key.Group != "" {
		return
	}
	n, joined := s.nodes.Get(h.Key.Name)
	removal, why := s.removalHealth(h.Key.Name)
	switch {
	case removal != "":
		h.Health, h.Reason = removal, why
	case joined && n.Unheard:
		h.Reason = clause("NodeNotReady", n.Reason)
	case !joined || !n.told && !n.reported:
		h.Reason = "no machine of this name has joined"
	case n.silent():
		h.Health, h.Reason = nodes.Degraded, clause("NodeNotReady", n.Reason)
	case s.drain(n).left > 0:
		h.Health, h.Reason = nodes.Progressing, s.drain(n).String()
	}
}
