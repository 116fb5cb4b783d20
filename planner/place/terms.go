package place

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
)

// terms are what a pod says about other pods.
type terms struct {
	// attracts and repels are its required affinity and anti-affinity.
	attracts, repels []term
	// leans are what it prefers.
	leans []weighted
	// hard and soft are the spreads that must hold and those that need not.
	hard, soft []constraint
	// keyed are the label keys that the terms mention by name.
	keyed []string
}

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

// constraint is one topology spread constraint.
type constraint struct {
	// selector is nil for the pods of the same template.
	selector   labels.Selector
	topology   string
	skew       int
	minDomains int
	ignoreNode bool // nodeAffinityPolicy Ignore: count all nodes
	honorTaint bool
}

// defaultSpread is Kubernetes' for pods that say nothing of their spread.
var defaultSpread = []constraint{
	{topology: corev1.LabelHostname, skew: 3},
	{topology: corev1.LabelTopologyZone, skew: 5},
}

func compileTerms(a *asks, own labels.Labels) *terms {
	c := &compiler{asks: a, own: own}
	if affinity := a.spec.Affinity; affinity != nil && affinity.PodAffinity != nil {
		c.out.attracts = c.terms(affinity.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution)
		c.lean(affinity.PodAffinity.PreferredDuringSchedulingIgnoredDuringExecution, 1)
	}
	if affinity := a.spec.Affinity; affinity != nil && affinity.PodAntiAffinity != nil {
		c.out.repels = c.terms(affinity.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution)
		c.lean(affinity.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution, -1)
	}
	for i := range a.spec.TopologySpreadConstraints {
		if t := &a.spec.TopologySpreadConstraints[i]; t.WhenUnsatisfiable == corev1.DoNotSchedule {
			c.out.hard = append(c.out.hard, c.constraint(t))
		} else {
			c.out.soft = append(c.out.soft, c.constraint(t))
		}
	}
	if len(a.spec.TopologySpreadConstraints) == 0 && a.profile == Services {
		c.out.soft = defaultSpread
	}
	slices.Sort(c.out.keyed)
	c.out.keyed = slices.Compact(c.out.keyed)
	return &c.out
}

type compiler struct {
	*asks
	own labels.Labels
	out terms
}

func (c *compiler) constraint(t *corev1.TopologySpreadConstraint) constraint {
	out := constraint{
		selector:   c.selector(t.LabelSelector, t.MatchLabelKeys, nil),
		topology:   t.TopologyKey,
		skew:       int(t.MaxSkew),
		minDomains: 1,
		ignoreNode: t.NodeAffinityPolicy != nil && *t.NodeAffinityPolicy == corev1.NodeInclusionPolicyIgnore,
		honorTaint: t.NodeTaintsPolicy != nil && *t.NodeTaintsPolicy == corev1.NodeInclusionPolicyHonor,
	}
	if t.MinDomains != nil {
		out.minDomains = int(*t.MinDomains)
	}
	return out
}

func (c *compiler) terms(in []corev1.PodAffinityTerm) []term {
	var out []term
	for i := range in {
		out = append(out, c.term(&in[i]))
	}
	return out
}

func (c *compiler) term(t *corev1.PodAffinityTerm) term {
	out := term{
		namespaces: t.Namespaces,
		selector:   c.selector(t.LabelSelector, t.MatchLabelKeys, t.MismatchLabelKeys),
		topology:   t.TopologyKey,
	}
	if t.NamespaceSelector != nil {
		out.within = selectorOf(t.NamespaceSelector)
	} else if len(t.Namespaces) == 0 {
		out.namespaces = []string{c.namespace}
	}
	return out
}

func (c *compiler) lean(in []corev1.WeightedPodAffinityTerm, sign int64) {
	for i := range in {
		c.out.leans = append(c.out.leans, weighted{term: c.term(&in[i].PodAffinityTerm), weight: sign * int64(in[i].Weight)})
	}
}

// selector adds the pod's own values of matchLabelKeys to a label selector.
func (c *compiler) selector(s *metav1.LabelSelector, match, mismatch []string) labels.Selector {
	if s == nil {
		return labels.Nothing()
	}
	s = s.DeepCopy()
	add := func(keys []string, op metav1.LabelSelectorOperator) {
		c.out.keyed = append(c.out.keyed, keys...)
		for _, k := range keys {
			if v, ok := c.own.Lookup(k); ok {
				s.MatchExpressions = append(s.MatchExpressions, metav1.LabelSelectorRequirement{Key: k, Operator: op, Values: []string{v}})
			}
		}
	}
	add(match, metav1.LabelSelectorOpIn)
	add(mismatch, metav1.LabelSelectorOpNotIn)
	out := selectorOf(s)
	requirements, _ := out.Requirements()
	for i := range requirements {
		c.out.keyed = append(c.out.keyed, requirements[i].Key())
	}
	return out
}

func selectorOf(s *metav1.LabelSelector) labels.Selector {
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return labels.Nothing()
	}
	return selector
}

// matches reports whether a term is about a pod.
func (t *term) matches(r *Request, namespaceLabels func(string) map[string]string) bool {
	in := slices.Contains(t.namespaces, r.namespace) ||
		t.within != nil && t.within.Matches(labels.Set(namespaceLabels(r.namespace)))
	return in && t.selector.Matches(r.labels)
}

// counts reports whether a constraint of one pod counts another. A selector
// that selects everything counts nobody, as in Kubernetes.
func (c *constraint) counts(of, r *Request) bool {
	switch {
	case c.selector == nil:
		return of.Sibling(r)
	case c.selector.Empty():
		return false
	default:
		return r.namespace == of.namespace && c.selector.Matches(r.labels)
	}
}

// self is 1 when a pod counts in its own spread.
func (c *constraint) self(r *Request) int {
	if c.selector.Matches(r.labels) {
		return 1
	}
	return 0
}

// Pick describes pods by namespace and one label: more than a term is about,
// never fewer.
type Pick struct {
	// Namespaces, nil for all of them.
	Namespaces []string
	// Key with one of Values; an empty Key picks all pods.
	Key    string
	Values []string
}

func (t *term) pick() Pick {
	p := pickBy(t.selector)
	if t.within == nil {
		p.Namespaces = t.namespaces
	}
	return p
}

func (c *constraint) pick(r *Request) Pick {
	p := pickBy(c.selector)
	p.Namespaces = []string{r.namespace}
	return p
}

// pickBy takes the requirement that names the fewest values.
func pickBy(s labels.Selector) Pick {
	var best Pick
	requirements, _ := s.Requirements()
	for i := range requirements {
		switch r := &requirements[i]; r.Operator() {
		case selection.In, selection.Equals, selection.DoubleEquals:
			if values := r.ValuesUnsorted(); best.Key == "" || len(values) < len(best.Values) {
				best.Key, best.Values = r.Key(), values
			}
		}
	}
	slices.Sort(best.Values)
	return best
}

// Minds gives the pods that the terms are about which others must heed, or
// prefer to: whoever is bound later has to look for them.
func (r *Request) Minds() []Pick {
	var out []Pick
	for i := range r.attracts {
		out = append(out, r.attracts[i].pick())
	}
	for i := range r.repels {
		out = append(out, r.repels[i].pick())
	}
	for i := range r.leans {
		out = append(out, r.leans[i].pick())
	}
	return out
}

// Keyed are the label keys that the terms mention, sorted.
func (r *Request) Keyed() []string { return r.keyed }
