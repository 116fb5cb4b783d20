package planner

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
)

// fences reports whether a pod is to run only while its node's lease is valid:
// as it says itself, or its workload, or the cluster for pods of which only one
// may run and which could go elsewhere.
func (s *State) fences(g *group, p *pod) bool {
	switch s.failoverOf(g, p) {
	case desired.FailoverFenced:
		return true
	case desired.FailoverWait:
		return false
	}
	mode := s.snapshot.Settings().Nodes.Failover
	if mode == "" && s.config.Several {
		mode = desired.FailoverFenced
	}
	if mode != desired.FailoverFenced {
		return false
	}
	alone, stuck := s.tie(g, p)
	return alone && stuck == ""
}

// failoverOf is what the manifest of a pod says, or of its workload.
func (s *State) failoverOf(g *group, p *pod) string {
	if mode := p.Template.Annotations[desired.FailoverAnnotation]; mode != "" {
		return mode
	}
	return failoverSaid(g.object)
}

// fencedOn are the pods of a node that its keeper is to kill with its lease.
func (s *State) fencedOn(n *node) (out []nodes.UID) {
	for uid := range keys(n.pods) {
		if g, p := s.pod(uid); p != nil && s.fences(g, p) {
			out = append(out, uid)
		}
	}
	return out
}

// reportFences takes in what a keeper has promised. A promise that is no longer
// asked for counts for nothing: the keeper may forget it any time. Asked for
// again, it counts from the node's next session on. Before anything is asked of
// the nodes they hold to what was asked before our start, and say it once.
func (st *step) reportFences(r *nodes.Report) {
	if len(r.Fenced) == 0 && !r.Complete {
		return
	}
	n, ok := st.nodes.Get(r.Node)
	if !ok {
		return
	}
	promised := make(map[nodes.UID]bool, len(r.Fenced))
	for _, uid := range r.Fenced {
		promised[uid] = true
		if g, p := st.pod(uid); p != nil && p.Node == r.Node && (!st.assigns() || st.fences(g, p)) && (r.Complete || p.unfenced == 0 || p.unfenced != n.heard) {
			st.fence(p, true)
		}
	}
	if !r.Complete {
		return
	}
	for uid := range keys(n.pods) {
		if _, p := st.pod(uid); p != nil && !promised[uid] {
			st.fence(p, false)
		}
	}
}

// assigns reports whether nodes are told what to run, and which fences to hold.
func (s *State) assigns() bool { return s.snapshot != nil && s.informed }

// fence records what a keeper has promised about a pod.
func (st *step) fence(p *pod, is bool) {
	if p.fenced != is {
		st.recordPod(st.change(p.UID, func(p *pod) { p.fenced = is }))
	}
}

// ask notes which fences a node is asked to hold, and takes back in the record
// what its keeper is told to forget.
func (st *step) ask(n *node) {
	for uid := range keys(n.pods) {
		g, p := st.pod(uid)
		switch {
		case p == nil:
		case !st.fences(g, p):
			if p.asked || p.fenced { // what was asked may be promised by now
				st.fence(st.change(uid, func(p *pod) { p.asked, p.unfenced = false, n.heard }), false)
			}
		case !p.asked:
			st.change(uid, func(p *pod) { p.asked = true })
		}
	}
}

// applyFailover has assignments made anew where a revision may fence other pods
// than the one before.
func (st *step) applyFailover(c *comparison) {
	if c.old == nil {
		return // every node's is made
	}
	if c.old.Settings().Nodes != c.next.Settings().Nodes {
		for name, n := range entries(st.nodes) {
			st.dirtyNodes[name] = true
			clone := *n
			st.putNode(&clone)
		}
		return
	}
	for _, k := range c.changed {
		if g, ok := st.groups.Get(k); ok && failoverSaid(c.old.Get(k)) != failoverSaid(c.next.Get(k)) {
			for _, p := range g.pods {
				if p.Node != "" {
					st.dirtyNodes[p.Node] = true
				}
			}
		}
	}
}

func failoverSaid(o *desired.Object) string {
	if o == nil {
		return ""
	}
	meta, ok := o.Value.(metav1.Object)
	if !ok {
		return ""
	}
	return meta.GetAnnotations()[desired.FailoverAnnotation]
}
