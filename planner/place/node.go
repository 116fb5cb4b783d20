package place

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/tallyman-dev/tallyman/nodes"
)

// Node is one machine with what is bound to it. Immutable: With and Without
// give another.
type Node struct {
	*host
	used   Resources
	felt   felt
	ports  []Port
	number int32
	// ranks is what pods of each priority use, the lowest first.
	ranks []rank
}

// host is what a node is, whatever runs on it.
type host struct {
	state *nodes.NodeState
	kube  *corev1.Node
	can   Resources
	// refuses is set when the node takes no pods at all.
	refuses string
}

// rank is what the pods of one priority use together.
type rank struct {
	priority int32
	used     Resources
}

// unschedulable is the taint that a node has while it takes no new pods.
var unschedulable = corev1.Taint{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule}

// NewNode is a machine with nothing on it. refuses, when not empty, says in a
// few words why it takes no pods ("is silent").
func NewNode(state *nodes.NodeState, refuses string) *Node {
	// The beta labels are as old as the manifests that still select by them.
	set := map[string]string{
		corev1.LabelHostname:    state.Name,
		corev1.LabelOSStable:    state.OS,
		corev1.LabelArchStable:  state.Arch,
		"beta.kubernetes.io/os": state.OS, "beta.kubernetes.io/arch": state.Arch,
	}
	maps.Copy(set, state.Labels)
	kube := &corev1.Node{}
	kube.Name, kube.Labels = state.Name, set
	kube.Spec.Taints = state.Taints
	if state.Unschedulable && !slices.ContainsFunc(state.Taints, func(t corev1.Taint) bool { return t.MatchTaint(&unschedulable) }) {
		kube.Spec.Taints = append(slices.Clip(state.Taints), unschedulable)
	}
	return &Node{host: &host{state: state, kube: kube, can: fromList(state.Allocatable), refuses: refuses}}
}

// Change is the same load on a machine that describes itself anew.
func (n *Node) Change(state *nodes.NodeState, refuses string) *Node {
	c := *n
	c.host = NewNode(state, refuses).host
	return &c
}

// Alike reports whether a node is to every workload what it was before, but for
// what is left on it.
func Alike(a, b *Node) bool {
	return a.refuses == b.refuses && maps.Equal(a.kube.Labels, b.kube.Labels) && slices.EqualFunc(a.kube.Spec.Taints, b.kube.Spec.Taints,
		func(a, b corev1.Taint) bool { return a.Key == b.Key && a.Value == b.Value && a.Effect == b.Effect })
}

// Name of the node.
func (n *Node) Name() string { return n.kube.Name }

// Labels of the node, with those that Kubernetes adds. Shared: nobody may
// change them.
func (n *Node) Labels() map[string]string { return n.kube.Labels }

// Drivers are the storage drivers that run on it.
func (n *Node) Drivers() []string { return n.state.Drivers }

// DriverNodes is what they say of it.
func (n *Node) DriverNodes() []nodes.DriverNode { return n.state.DriverNodes }

// With is the node with one more pod.
func (n *Node) With(r *Request) *Node {
	c := *n
	c.load(r, 1)
	if len(r.ports) > 0 {
		c.ports = append(slices.Clip(n.ports), r.ports...)
	}
	return &c
}

// Without is the node with one pod less.
func (n *Node) Without(r *Request) *Node {
	c := *n
	c.load(r, -1)
	if len(r.ports) > 0 {
		c.ports = slices.Clone(n.ports)
		for _, p := range r.ports {
			if i := slices.Index(c.ports, p); i >= 0 {
				c.ports = slices.Delete(c.ports, i, i+1)
			}
		}
	}
	return &c
}

func (n *Node) load(r *Request, sign int64) {
	n.used = n.used.plus(r.needs, sign)
	n.felt = felt{n.felt.cpu + sign*r.felt.cpu, n.felt.memory + sign*r.felt.memory}
	n.ranks = slices.Clone(n.ranks)
	at, found := slices.BinarySearchFunc(n.ranks, r.priority(), func(k rank, p int32) int { return int(int64(k.priority) - int64(p)) })
	if !found {
		n.ranks = slices.Insert(n.ranks, at, rank{priority: r.priority()})
	}
	if n.ranks[at].used = n.ranks[at].used.plus(r.needs, sign); n.ranks[at].used.pods == 0 {
		n.ranks = slices.Delete(n.ranks, at, at+1)
	}
}

func (a *asks) priority() int32 {
	if a.spec.Priority == nil {
		return 0
	}
	return *a.spec.Priority
}

// Numbered is the node with a number that no other has: by it Images finds it.
// 0, which a node has at first, is nobody's.
func (n *Node) Numbered(number int32) *Node {
	c := *n
	c.number = number
	return &c
}

// Number of the node; see Numbered.
func (n *Node) Number() int32 { return n.number }

// Holds reports whether the node can give what a pod requests.
func (n *Node) Holds(r *Request) bool {
	_, lacks := n.can.lacks(n.used, r.needs)
	return !lacks
}

// mightHold reports whether the node could give what a pod requests once the
// pods of lower priority were gone; false where there are none.
func (n *Node) mightHold(r *Request) bool {
	if len(n.ranks) == 0 || n.ranks[0].priority >= r.priority() {
		return false
	}
	left := n.used
	for _, k := range n.ranks {
		if k.priority < r.priority() {
			left = left.plus(k.used, -1)
		}
	}
	_, lacks := n.can.lacks(left, r.needs)
	return !lacks
}
