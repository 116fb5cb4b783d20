// Package place decides on which node a pod runs: filters that explain
// themselves, then scores.
//
// Guarantees: a pod is only placed where its requests fit into what the node
// can still give, and every refusal is one sentence that an operator can act
// on. The same pod and nodes give the same choice; ties go to the node whose
// name sorts first. It binds nothing and keeps nothing: values in, a name out.
package place

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"

	"github.com/tallyman-dev/tallyman/nodes"
)

// Request is what a pod template asks of a node, made ready once per template.
// Immutable.
type Request struct {
	namespace string
	labels    labels.Set
	spec      *corev1.PodSpec
	needs     Resources
	ports     []Port
	// bestEffort pods request nothing and are limited in nothing.
	bestEffort bool

	required  nodeaffinity.RequiredNodeAffinity
	preferred *nodeaffinity.PreferredSchedulingTerms

	attracts, repels []term
	spread           []constraint
	leans            []weighted
}

// Compile reads a template. Terms that don't parse match nothing; validation
// has refused them before.
func Compile(namespace string, t *nodes.Template) *Request {
	r := &Request{
		namespace:  namespace,
		labels:     t.Labels,
		spec:       &t.Spec,
		needs:      requests(&t.Spec),
		ports:      hostPorts(&t.Spec),
		bestEffort: nodes.QoS(&t.Spec) == corev1.PodQOSBestEffort,
		required:   nodeaffinity.GetRequiredNodeAffinity(&corev1.Pod{Spec: t.Spec}),
	}
	r.compileAffinity()
	return r
}

// WithLabels is the request of a pod with other labels than its template's.
func (r *Request) WithLabels(all map[string]string) *Request {
	c := *r
	c.labels = all
	if r.Social() {
		// Terms may refer to the pod's own labels by key.
		c.preferred, c.attracts, c.repels, c.spread, c.leans = nil, nil, nil, nil, nil
		c.compileAffinity()
	}
	return &c
}

// Repels reports whether a pod keeps others away, which later pods must heed.
func (r *Request) Repels() bool { return len(r.repels) > 0 }

// Social reports whether the choice depends on the other pods.
func (r *Request) Social() bool {
	return len(r.attracts)+len(r.repels)+len(r.spread)+len(r.leans) > 0
}

// Node is one machine with what is bound to it. Immutable: With and Without
// give another.
type Node struct {
	state *nodes.NodeState
	kube  *corev1.Node
	can   Resources
	used  Resources
	ports []Port
	// refuses is set when the node takes no pods at all.
	refuses string
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
	for k, v := range state.Labels {
		set[k] = v
	}
	kube := &corev1.Node{}
	kube.Name, kube.Labels = state.Name, set
	kube.Spec.Taints = state.Taints
	if state.Unschedulable && !slices.ContainsFunc(state.Taints, func(t corev1.Taint) bool { return t.MatchTaint(&unschedulable) }) {
		kube.Spec.Taints = append(slices.Clip(state.Taints), unschedulable)
	}
	return &Node{state: state, kube: kube, can: fromList(state.Allocatable), refuses: refuses}
}

// Change is the same load on a machine that describes itself anew.
func (n *Node) Change(state *nodes.NodeState, refuses string) *Node {
	c := NewNode(state, refuses)
	c.used, c.ports = n.used, n.ports
	return c
}

// Alike reports whether a node is to every workload what it was before, but for
// what is left on it.
func Alike(a, b *Node) bool {
	return a.refuses == b.refuses && maps.Equal(a.kube.Labels, b.kube.Labels) && slices.EqualFunc(a.kube.Spec.Taints, b.kube.Spec.Taints,
		func(a, b corev1.Taint) bool { return a.Key == b.Key && a.Value == b.Value && a.Effect == b.Effect })
}

// Name of the node.
func (n *Node) Name() string { return n.state.Name }

// Labels of the node, with those that Kubernetes adds. Shared: nobody may
// change them.
func (n *Node) Labels() map[string]string { return n.kube.Labels }

// Drivers are the storage drivers that run on it.
func (n *Node) Drivers() []string { return n.state.Drivers }

// With is the node with one more pod.
func (n *Node) With(r *Request) *Node {
	c := *n
	c.used = n.used.plus(r.needs, 1)
	if len(r.ports) > 0 {
		c.ports = append(slices.Clip(n.ports), r.ports...)
	}
	return &c
}

// Without is the node with one pod less.
func (n *Node) Without(r *Request) *Node {
	c := *n
	c.used = n.used.plus(r.needs, -1)
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

// Holds reports whether the node can give what a pod requests.
func (n *Node) Holds(r *Request) bool {
	_, lacks := n.can.lacks(n.used, r.needs)
	return !lacks
}

// Neighbour is a pod that is already bound.
type Neighbour struct {
	Node    string
	Request *Request
	// Leaving pods are on their way out: they keep others away until they are
	// gone, but take no part in a spread.
	Leaving bool
}

// Cluster is all that a choice depends on.
type Cluster struct {
	// Nodes sorted by name.
	Nodes []*Node
	// Neighbours are the bound pods; only asked for when the choice depends on them.
	Neighbours func() []Neighbour
	// Repelled is set when some bound pod keeps others away.
	Repelled bool
	// Storage says why a node can't serve the pod's claims, going on from "the
	// node …"; empty when it can. Nil for a pod without claims.
	Storage func(*Node) string
	// NamespaceLabels gives the labels of a namespace.
	NamespaceLabels func(name string) map[string]string
}

// Choose names the node for one pod, or says why none fits.
func Choose(r *Request, c Cluster) (node, refusal string) {
	if len(c.Nodes) == 0 {
		return "", "no node has joined the cluster yet"
	}
	var company *company
	if r.Social() || c.Repelled {
		company = newCompany(r, c)
	}
	refusals := newRefusals(len(c.Nodes))
	var best *Node
	var bestScore int64
	for _, n := range c.Nodes {
		if why := c.refuses(r, n, company); why.key != "" {
			refusals.add(why)
			continue
		}
		if score := score(r, n, company); best == nil || score > bestScore {
			best, bestScore = n, score
		}
	}
	if best == nil {
		return "", refusals.String()
	}
	return best.Name(), ""
}

// Fits says why the named node can't take a pod that is for no other; empty
// when it can.
func Fits(r *Request, c Cluster, node string) string {
	i := slices.IndexFunc(c.Nodes, func(n *Node) bool { return n.Name() == node })
	if i < 0 {
		return "node " + node + " has not joined the cluster"
	}
	var company *company
	if r.Social() || c.Repelled {
		company = newCompany(r, c)
	}
	why := c.refuses(r, c.Nodes[i], company)
	if why.key == "" {
		return ""
	}
	return fmt.Sprintf("node %s %s%s", node, why.text, why.detail)
}

// Eligible reports whether a node is one that a workload with a pod on each
// node is for: whether a pod runs there, and whether one that is there stays. A
// taint that evicts nobody keeps only new ones away.
func Eligible(r *Request, n *Node) (runs, stays bool) {
	if r.spec.NodeName != "" && r.spec.NodeName != n.Name() {
		return false, false
	}
	if match, err := r.required.Match(n.kube); err != nil || !match {
		return false, false
	}
	if _, hit := untolerated(r, n); hit {
		_, evicts := untoleratedBy(r, n, corev1.TaintEffectNoExecute)
		return false, !evicts
	}
	return true, true
}

// refuses asks the pod's claims last: their answer is the dearest.
func (c *Cluster) refuses(r *Request, n *Node, company *company) refusal {
	why := fits(r, n, company)
	if why.key != "" || c.Storage == nil {
		return why
	}
	text := c.Storage(n)
	if text == "" {
		return refusal{}
	}
	return refusal{key: "storage " + text, text: text}
}

// refusal is why one node doesn't fit. Nodes that share a key are counted
// together; free compares what they could give.
type refusal struct {
	key, text string
	free      int64
	detail    string
}

type refusals struct {
	total int
	kinds []*counted
}

type counted struct {
	refusal
	count int
}

func newRefusals(total int) *refusals { return &refusals{total: total} }

func (r *refusals) add(why refusal) {
	for _, k := range r.kinds {
		if k.key == why.key {
			k.count++
			if why.free > k.free {
				k.refusal = why
			}
			return
		}
	}
	r.kinds = append(r.kinds, &counted{refusal: why, count: 1})
}

// String gives "0/5 nodes fit: 3 lack cpu (want 2, most free 1.5), 2 have taint gpu=true:NoSchedule".
func (r *refusals) String() string {
	slices.SortStableFunc(r.kinds, func(a, b *counted) int {
		if a.count != b.count {
			return b.count - a.count
		}
		return strings.Compare(a.key, b.key)
	})
	parts := make([]string, len(r.kinds))
	for i, k := range r.kinds {
		parts[i] = fmt.Sprintf("%d %s%s", k.count, inflect(k.text, k.count), k.detail)
	}
	return fmt.Sprintf("0/%d nodes fit: %s", r.total, strings.Join(parts, ", "))
}

// inflect turns "lacks cpu" into "lack cpu" for several nodes.
func inflect(text string, count int) string {
	if count == 1 {
		return text
	}
	verb, rest, _ := strings.Cut(text, " ")
	switch verb {
	case "is":
		verb = "are"
	case "has":
		verb = "have"
	case "does":
		verb = "do"
	default:
		verb = strings.TrimSuffix(verb, "s")
	}
	if rest == "" {
		return verb
	}
	return verb + " " + rest
}
