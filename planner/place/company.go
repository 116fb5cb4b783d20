package place

import (
	"fmt"
	"math"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
)

// term is one pod affinity or anti-affinity term.
type term struct {
	namespaces []string
	// within, when set, chooses further namespaces by label.
	within   labels.Selector
	selector labels.Selector
	topology string
}

// weighted is a preference; negative weights push away.
type weighted struct {
	term
	weight int64
}

// constraint is one topology spread constraint that must hold.
type constraint struct {
	selector   labels.Selector
	topology   string
	skew       int
	minDomains int
	ignoreNode bool // nodeAffinityPolicy Ignore: count all nodes
	honorTaint bool
}

func (r *Request) compileAffinity() {
	if a := r.spec.Affinity; a != nil {
		if a.NodeAffinity != nil {
			if p, err := nodeaffinity.NewPreferredSchedulingTerms(a.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution); err == nil {
				r.preferred = p
			}
		}
		if a.PodAffinity != nil {
			r.attracts = r.terms(a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution)
			r.lean(a.PodAffinity.PreferredDuringSchedulingIgnoredDuringExecution, 1)
		}
		if a.PodAntiAffinity != nil {
			r.repels = r.terms(a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution)
			r.lean(a.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution, -1)
		}
	}
	for i := range r.spec.TopologySpreadConstraints {
		if c := &r.spec.TopologySpreadConstraints[i]; c.WhenUnsatisfiable == corev1.DoNotSchedule {
			r.spread = append(r.spread, r.constraint(c))
		} else {
			r.leans = append(r.leans, weighted{weight: -1, term: term{
				namespaces: []string{r.namespace}, selector: r.selector(c.LabelSelector, c.MatchLabelKeys, nil), topology: c.TopologyKey,
			}})
		}
	}
}

func (r *Request) constraint(c *corev1.TopologySpreadConstraint) constraint {
	out := constraint{
		selector:   r.selector(c.LabelSelector, c.MatchLabelKeys, nil),
		topology:   c.TopologyKey,
		skew:       int(c.MaxSkew),
		ignoreNode: c.NodeAffinityPolicy != nil && *c.NodeAffinityPolicy == corev1.NodeInclusionPolicyIgnore,
		honorTaint: c.NodeTaintsPolicy != nil && *c.NodeTaintsPolicy == corev1.NodeInclusionPolicyHonor,
	}
	if c.MinDomains != nil {
		out.minDomains = int(*c.MinDomains)
	}
	return out
}

func (r *Request) terms(in []corev1.PodAffinityTerm) []term {
	var out []term
	for i := range in {
		out = append(out, r.term(&in[i]))
	}
	return out
}

func (r *Request) term(t *corev1.PodAffinityTerm) term {
	out := term{
		namespaces: t.Namespaces,
		selector:   r.selector(t.LabelSelector, t.MatchLabelKeys, t.MismatchLabelKeys),
		topology:   t.TopologyKey,
	}
	if t.NamespaceSelector != nil {
		out.within = selectorOf(t.NamespaceSelector)
	} else if len(t.Namespaces) == 0 {
		out.namespaces = []string{r.namespace}
	}
	return out
}

func (r *Request) lean(in []corev1.WeightedPodAffinityTerm, sign int64) {
	for i := range in {
		r.leans = append(r.leans, weighted{term: r.term(&in[i].PodAffinityTerm), weight: sign * int64(in[i].Weight)})
	}
}

// selector adds the pod's own values of matchLabelKeys to a label selector.
func (r *Request) selector(s *metav1.LabelSelector, match, mismatch []string) labels.Selector {
	if s == nil {
		return labels.Nothing()
	}
	s = s.DeepCopy()
	add := func(keys []string, op metav1.LabelSelectorOperator) {
		for _, k := range keys {
			if v, ok := r.labels[k]; ok {
				s.MatchExpressions = append(s.MatchExpressions, metav1.LabelSelectorRequirement{Key: k, Operator: op, Values: []string{v}})
			}
		}
	}
	add(match, metav1.LabelSelectorOpIn)
	add(mismatch, metav1.LabelSelectorOpNotIn)
	return selectorOf(s)
}

func selectorOf(s *metav1.LabelSelector) labels.Selector {
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return labels.Nothing()
	}
	return selector
}

// company is what the pods that are already there mean to one request:
// for every term the number of matching pods in each topology domain.
type company struct {
	request  *Request
	attracts []map[string]int
	repels   []map[string]int
	spread   []spreadCount
	leans    []map[string]int
	// forbidden are domains that bound pods keep this one out of.
	forbidden map[domain]bool
	// alone is set when no pod anywhere matches any attracting term.
	alone bool
}

type domain struct{ topology, value string }

type spreadCount struct {
	counts map[string]int
	least  int
}

func newCompany(r *Request, c Cluster) *company {
	byName := make(map[string]*Node, len(c.Nodes))
	for _, n := range c.Nodes {
		byName[n.Name()] = n
	}
	out := &company{request: r, forbidden: map[domain]bool{}, alone: true}
	neighbours := c.Neighbours()
	count := func(t term) map[string]int {
		counts := map[string]int{}
		for _, p := range neighbours {
			value, ok := byName[p.Node].topology(t.topology)
			if ok && t.matches(p.Request, c) {
				counts[value]++
			}
		}
		return counts
	}
	for _, t := range r.attracts {
		counts := count(t)
		out.attracts = append(out.attracts, counts)
		out.alone = out.alone && len(counts) == 0 && t.matches(r, c)
	}
	for _, t := range r.repels {
		out.repels = append(out.repels, count(t))
	}
	for _, t := range r.leans {
		out.leans = append(out.leans, count(t.term))
	}
	for _, s := range r.spread {
		out.spread = append(out.spread, s.count(r, c, byName, neighbours))
	}
	for _, p := range neighbours {
		for _, t := range p.Request.repels {
			if value, ok := byName[p.Node].topology(t.topology); ok && t.matches(r, c) {
				out.forbidden[domain{t.topology, value}] = true
			}
		}
	}
	return out
}

// topology is nil-safe: a bound pod's node may be unknown.
func (n *Node) topology(key string) (string, bool) {
	if n == nil {
		return "", false
	}
	value, ok := n.kube.Labels[key]
	return value, ok
}

func (t term) matches(r *Request, c Cluster) bool {
	in := slices.Contains(t.namespaces, r.namespace) ||
		t.within != nil && t.within.Matches(labels.Set(c.NamespaceLabels(r.namespace)))
	return in && t.selector.Matches(r.labels)
}

func (s constraint) count(r *Request, c Cluster, byName map[string]*Node, neighbours []Neighbour) spreadCount {
	out := spreadCount{counts: map[string]int{}}
	for _, n := range c.Nodes {
		if value, ok := n.topology(s.topology); ok && s.counts(r, n) {
			out.counts[value] += 0
		}
	}
	for _, p := range neighbours {
		n := byName[p.Node]
		value, ok := n.topology(s.topology)
		if ok && !p.Leaving && s.counts(r, n) && p.Request.namespace == r.namespace && s.selector.Matches(p.Request.labels) {
			out.counts[value]++
		}
	}
	out.least = math.MaxInt
	for _, v := range out.counts {
		out.least = min(out.least, v)
	}
	if len(out.counts) < s.minDomains || len(out.counts) == 0 {
		out.least = 0
	}
	return out
}

// counts reports whether a node takes part in the spread.
func (s constraint) counts(r *Request, n *Node) bool {
	if !s.ignoreNode {
		if match, err := r.required.Match(n.kube); err != nil || !match {
			return false
		}
	}
	if s.honorTaint {
		if _, hit := untolerated(r, n); hit {
			return false
		}
	}
	return true
}

func (c *company) refuses(n *Node) refusal {
	for i, t := range c.request.attracts {
		value, ok := n.topology(t.topology)
		if !ok || c.attracts[i][value] == 0 && !c.alone {
			return refusal{key: "affinity", text: "has no pod that the pod affinity asks for"}
		}
	}
	for i, t := range c.request.repels {
		if value, ok := n.topology(t.topology); ok && c.repels[i][value] > 0 {
			return refusal{key: "anti-affinity", text: "has a pod that the pod anti-affinity keeps away from"}
		}
	}
	for d := range c.forbidden {
		if value, ok := n.topology(d.topology); ok && value == d.value {
			return refusal{key: "anti-affinity of others", text: "has a pod whose anti-affinity keeps this one away"}
		}
	}
	for i, s := range c.request.spread {
		if why := c.spread[i].refuses(s, c.request, n); why.key != "" {
			return why
		}
	}
	return refusal{}
}

func (c spreadCount) refuses(s constraint, r *Request, n *Node) refusal {
	value, ok := n.topology(s.topology)
	if !ok {
		return refusal{key: "no topology " + s.topology, text: "lacks the label " + s.topology + " to spread over"}
	}
	self := 0
	if s.selector.Matches(r.labels) {
		self = 1
	}
	if c.counts[value]+self-c.least > s.skew {
		return refusal{key: "spread " + s.topology, text: fmt.Sprintf("has too many of these pods to spread over %s (maxSkew %d)", s.topology, s.skew)}
	}
	return refusal{}
}

func (c *company) score(n *Node) int64 {
	total := int64(0)
	for i, t := range c.request.leans {
		if value, ok := n.topology(t.topology); ok {
			total += t.weight * int64(c.leans[i][value])
		}
	}
	return total
}
