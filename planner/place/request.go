package place

import (
	"hash/crc32"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"

	"github.com/tallyman-dev/tallyman/nodes"
)

// Request is what a pod asks of a node, made ready once per template. Immutable.
type Request struct {
	*asks
	*terms
	labels labels.Labels
	// base is the request of the template, which a pod with labels of its own
	// shares; nil for that one itself.
	base *Request
}

// asks is what all pods of a template have in common.
type asks struct {
	profile Profile
	// start is where a sample of nodes begins.
	start     uint32
	namespace string
	labels    map[string]string
	spec      *corev1.PodSpec
	needs     Resources
	// felt is what the score of room counts with.
	felt  felt
	ports []Port
	// bestEffort pods request nothing and are limited in nothing.
	bestEffort bool
	// choosy is set when there is a node selector or a required node affinity.
	choosy    bool
	required  nodeaffinity.RequiredNodeAffinity
	preferred *nodeaffinity.PreferredSchedulingTerms
	// images are those of its containers and volumes, by name.
	images []string
}

// Asks is the CPU, in thousandths of a core, and the memory, in bytes, that a pod
// requests.
func (r *Request) Asks() (cpu, memory int64) { return r.needs.cpu, r.needs.memory }

// Compile reads a template. Terms that don't parse match nothing; validation
// has refused them before.
func Compile(p Profile, namespace string, t *nodes.Template) *Request {
	a := &asks{
		profile:    p,
		start:      crc32.ChecksumIEEE([]byte(t.Hash)),
		namespace:  namespace,
		labels:     t.Labels,
		spec:       &t.Spec,
		needs:      requests(&t.Spec),
		felt:       feltBy(&t.Spec),
		ports:      hostPorts(&t.Spec),
		bestEffort: nodes.QoS(&t.Spec) == corev1.PodQOSBestEffort,
		required:   nodeaffinity.GetRequiredNodeAffinity(&corev1.Pod{Spec: t.Spec}),
		images:     imagesOf(&t.Spec),
	}
	a.choosy = len(t.Spec.NodeSelector) > 0
	if affinity := t.Spec.Affinity; affinity != nil && affinity.NodeAffinity != nil {
		a.choosy = a.choosy || affinity.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution != nil
		if preferred := affinity.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution; len(preferred) > 0 {
			if p, err := nodeaffinity.NewPreferredSchedulingTerms(preferred); err == nil {
				a.preferred = p
			}
		}
	}
	set := labels.Set(t.Labels)
	return &Request{asks: a, terms: compileTerms(a, set), labels: set}
}

// WithOwn is the request of a pod that has labels beside its template's.
func (r *Request) WithOwn(own map[string]string) *Request {
	if len(own) == 0 {
		return r
	}
	c := &Request{asks: r.asks, terms: r.terms, labels: layered{own, r.asks.labels}, base: r}
	if slices.ContainsFunc(r.keyed, func(key string) bool { _, has := own[key]; return has }) {
		c.terms = compileTerms(r.asks, c.labels)
	}
	return c
}

// kin is what pods share that ask for the same, but for their own labels.
func (r *Request) kin() *Request {
	if r.base != nil && r.base.terms == r.terms {
		return r.base
	}
	return r
}

// Sibling reports whether two pods have one template.
func (r *Request) Sibling(o *Request) bool { return r.asks == o.asks }

// Minding reports whether there are terms about other pods that those have to
// heed, too.
func (r *Request) Minding() bool { return len(r.attracts)+len(r.repels)+len(r.leans) > 0 }

// layered are the labels of a pod: its own, then its template's.
type layered struct{ own, shared map[string]string }

func (l layered) Has(key string) bool { _, has := l.Lookup(key); return has }

func (l layered) Get(key string) string { v, _ := l.Lookup(key); return v }

func (l layered) Lookup(key string) (string, bool) {
	if v, has := l.own[key]; has {
		return v, true
	}
	v, has := l.shared[key]
	return v, has
}

// Pairs shows the labels of the pod.
func (r *Request) Pairs(see func(key, value string)) {
	for k, v := range r.asks.labels {
		see(k, v)
	}
	if l, ok := r.labels.(layered); ok {
		for k, v := range l.own {
			see(k, v)
		}
	}
}

// Namespace of the pod.
func (r *Request) Namespace() string { return r.namespace }

// Like gives a value that is the same for pods of which each node says the same,
// as long as nothing is bound.
func (f *Field) Like(r *Request) *Request {
	if f.particular {
		return r
	}
	return r.kin()
}

// Helped reports whether it may help a pod that another one is bound, or goes
// from a node.
func (r *Request) Helped(by *Request, namespaceLabels func(string) map[string]string) bool {
	about := func(terms []term, is *Request) bool {
		return slices.ContainsFunc(terms, func(t term) bool { return t.matches(is, namespaceLabels) })
	}
	return about(r.attracts, by) || about(r.repels, by) || about(by.repels, r) ||
		slices.ContainsFunc(r.hard, func(c constraint) bool { return c.counts(r, by) })
}

// Spreads reports whether there is a spread that must hold: it depends on which
// nodes there are.
func (r *Request) Spreads() bool { return len(r.hard) > 0 }

// MayRun reports whether a node has room for a pod, or would have it if pods of
// lower priority went, whatever else runs there.
func (n *Node) MayRun(r *Request) bool { return admits(r, n) && (roomy(r, n) || n.mightHold(r)) }
