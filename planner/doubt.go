package planner

import (
	"slices"

	"github.com/tallyman-dev/tallyman/nodes"
)

// A node that was cut off for longer than its lease does not know what was given
// away meanwhile; the record does. When that is lost, the node's fenced pods are
// adopted like all others, and to begin them again may be to run them twice.

// doubts reports whether a node has fenced pods that it may not begin.
func (s *State) doubts(n *node) bool {
	for uid := range keys(n.pods) {
		if g, p := s.pod(uid); p != nil && p.unproven && p.Stop == nil && !p.done() && s.fences(g, p) {
			return true
		}
	}
	return false
}

// prove takes the word of a node of which a fenced pod runs: it was not cut off for
// so long, for it got its lease with an assignment that knew all.
func (st *step) prove(n *node) {
	proven := false
	for uid := range keys(n.pods) {
		_, p := st.pod(uid)
		proven = proven || p != nil && p.fenced && p.runs()
	}
	if !proven {
		return
	}
	for uid := range keys(n.pods) {
		if _, p := st.pod(uid); p != nil && p.unproven {
			st.recordPod(st.change(uid, func(p *pod) { p.unproven = false }))
		}
	}
}

// runs reports whether a container of the pod ran when its node last spoke of it.
func (p *pod) runs() bool {
	running := func(c nodes.ContainerStatus) bool { return c.State == nodes.Running }
	return p.status != nil && (slices.ContainsFunc(p.status.Init, running) || slices.ContainsFunc(p.status.Containers, running))
}

// doubt withholds a node's lease, without which it begins no fenced pod, and tells
// once why.
func (st *step) doubt(n *node) {
	st.prove(n)
	awaited := st.awaited()
	_, was := st.doubted.Get(n.Name)
	switch {
	case awaited == "" || !st.doubts(n):
		st.doubted = st.doubted.Delete(n.Name)
	case !was:
		st.doubted = st.doubted.Set(n.Name, struct{}{})
		st.event(nodeKey(n.Name), true, "LeaseWithheld", "Node "+n.Name+" gets no lease, so its fenced pods wait: the record was lost, and node "+awaited+
			", which has not reported since, may have got others in their place; it gets one when that node has, or its Node in Git has the taint node.kubernetes.io/out-of-service")
	}
}

// sessionOf is the session in which a node may be granted a lease; 0 for none.
func (s *State) sessionOf(n *node) uint64 {
	if _, doubted := s.doubted.Get(n.Name); doubted {
		return 0
	}
	return n.heard
}

// yieldsTo reports whether a pod was given away to one that a node holds.
func (p *pod) yieldsTo(held *nodes.Pod) bool {
	return p.unproven && p.Name == held.Name && p.Incarnation < held.Incarnation
}

// yield has the pods of an ordinal end of which it turns out that they were given
// away to one that a node holds.
func (st *step) yield(g *group, held *nodes.Pod) {
	if g.key.Kind != kindStatefulSet {
		return
	}
	for _, p := range slices.Clone(g.pods) {
		if p.yieldsTo(held) && p.Stop == nil && p.Node != "" {
			st.change(p.UID, func(p *pod) { p.leaving = "it was given away before the record was lost" })
			st.stop(p.UID)
		}
	}
}
