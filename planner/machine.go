package planner

import (
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/desired"
	"github.com/tallyman-dev/tallyman/nodes"
)

// machineRecord is the decision about one node. Git says what should hold
// about it and its agent what it is; this is what only Tallyman knows.
type machineRecord struct {
	Name string `json:"name"`
	// PodCIDR is the range that it has; empty before it has one.
	PodCIDR string `json:"pod_cidr,omitempty"`
	// Evicts is since when each taint that evicts pods is there, by taintName.
	Evicts map[string]time.Time `json:"evicts,omitempty"`
	// WireGuard is the public key that is the node's, base64; empty before it told one.
	WireGuard string `json:"wireguard,omitempty"`
	// Absent: the record was lost, and the node has not reported since.
	Absent bool `json:"absent,omitempty"`
}

// ownLabels are what a node's agent alone says.
var ownLabels = []string{
	corev1.LabelHostname, corev1.LabelOSStable, corev1.LabelArchStable, "beta.kubernetes.io/os", "beta.kubernetes.io/arch",
}

// said is the Node of Git; nil when nobody wrote about it.
func (s *State) said(name string) *corev1.Node {
	if s.snapshot == nil {
		return nil
	}
	return nodeIn(s.snapshot, name)
}

func nodeIn(snapshot *desired.Snapshot, name string) *corev1.Node {
	if o := snapshot.Get(nodeKey(name)); o != nil {
		v, _ := o.Value.(*corev1.Node)
		return v
	}
	return nil
}

// applyMachine takes in that Git says something else about a node, or nothing
// any more. One that has not joined has time.
func (st *step) applyMachine(name string) {
	st.releaseHeld(name)
	st.applyRemoval(name)
	if n, joined := st.nodes.Get(name); joined {
		clone := *n
		st.putNode(&clone)
	}
}

// effective is the node as the cluster sees it: what its agent says, and what
// Git says about it, which wins.
func effective(n *node, said *corev1.Node) nodes.NodeState {
	s := n.NodeState
	s.PodCIDR = n.podCIDR()
	if said == nil {
		return s
	}
	s.Labels = maps.Clone(s.Labels)
	if s.Labels == nil {
		s.Labels = map[string]string{}
	}
	for k, v := range said.Labels {
		if !slices.Contains(ownLabels, k) {
			s.Labels[k] = v
		}
	}
	s.Unschedulable = s.Unschedulable || said.Spec.Unschedulable
	s.Taints = joinTaints(said.Spec.Taints, s.Taints)
	return s
}

// joinTaints adds those of other keys and effects to first.
func joinTaints(first, others []corev1.Taint) []corev1.Taint {
	all := slices.Clone(first)
	for i := range others {
		if !slices.ContainsFunc(first, func(t corev1.Taint) bool { return t.MatchTaint(&others[i]) }) {
			all = append(all, others[i])
		}
	}
	for i := range all {
		all[i].TimeAdded = nil
	}
	return all
}

// taintName tells the taints of a node apart, as Kubernetes does.
func taintName(t *corev1.Taint) string { return t.Key + ":" + string(t.Effect) }

// shown is the node with the taints that Kubernetes would give it for its state.
func (n *node) shown() nodes.NodeState {
	s := n.state
	var own []corev1.Taint
	if s.Unschedulable {
		own = append(own, corev1.Taint{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule})
	}
	if n.silent() {
		own = append(own,
			corev1.Taint{Key: corev1.TaintNodeUnreachable, Effect: corev1.TaintEffectNoSchedule},
			corev1.Taint{Key: corev1.TaintNodeUnreachable, Effect: corev1.TaintEffectNoExecute})
	}
	if len(own) > 0 {
		s.Taints = joinTaints(s.Taints, own)
	}
	return s
}

// recordMachine decides what is kept about a node.
func (st *step) recordMachine(n *node) { st.decide(kindOfMachine, n.Name, n.kept) }

func (st *step) restoreMachine(r *machineRecord) {
	if r.Name == "" {
		return
	}
	n := st.nodeFor(r.Name)
	before := n.kept.WireGuard
	n.kept = *r
	if r.Absent {
		st.absent = append(slices.Clone(st.absent), r.Name)
	}
	st.holdRange(n)
	st.rangeless = st.rangeless.Delete(n.Name)
	st.putNode(n)
	st.restoreKey(n, before)
}

func nodeKey(name string) desired.Key { return desired.Key{Kind: kindNode, Name: name} }
