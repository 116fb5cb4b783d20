package planner

import (
	"fmt"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes"
)

// nodeOverview is a node with what runs on it and what is special about it.
func (s *State) nodeOverview(n *node) nodes.NodeOverview {
	o := nodes.NodeOverview{NodeState: n.shown()}
	var elsewhere []string
	for uid := range keys(n.pods) {
		_, p := s.pod(uid)
		if p == nil || p.released {
			continue
		}
		cpu, memory := p.request.Asks()
		o.Pods++
		o.RequestedCPU += cpu
		o.RequestedMemory += memory
		if p.status != nil && n.misplaces(p, p.status) {
			elsewhere = append(elsewhere, "pod "+p.Namespace+"/"+p.Name+" at "+p.status.IP)
		}
	}
	if len(elsewhere) > 0 {
		o.Notes = append(o.Notes, "has "+few(elsewhere)+", which are no addresses of it: nothing is routed there")
	}
	o.Notes = append(o.Notes, n.state.Problems...)
	if n.state.Unschedulable {
		o.Notes = append(o.Notes, "is cordoned: no new pods")
	}
	if n.rangeTrouble != "" && (n.podCIDR() != n.PodCIDR || !n.podCIDR().IsValid()) {
		o.Notes = append(o.Notes, n.rangeTrouble)
	}
	if n.keyTrouble != "" && n.lacksKey() {
		o.Notes = append(o.Notes, n.keyTrouble)
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

// misplaces reports whether a node says of a pod that it has an address which it
// may not have.
func (n *node) misplaces(p *pod, s *nodes.PodStatus) bool {
	addr, err := netip.ParseAddr(s.IP)
	return n != nil && s.IP != "" && (err != nil || !n.mayUse(p, addr))
}

// few lists the first of many.
func few(all []string) string {
	const shown = 3
	text := strings.Join(all[:min(len(all), shown)], ", ")
	if len(all) > shown {
		text += fmt.Sprintf(" and %d more", len(all)-shown)
	}
	return text
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
