// Package admission is what Kubernetes' admission plugins do to objects, as
// functions of values over a whole revision: they complete pods (LimitRange,
// PriorityClass, RuntimeClass, ServiceAccount) and judge them (LimitRange,
// ResourceQuota, pod security standards).
//
// Guarantees: the same objects give the same pods and the same findings in the
// same order; completing pods twice changes nothing the second time; the wording
// of a refusal is Kubernetes'. It does not look at files: whoever calls places
// a Finding at its object and field.
package admission

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/tallyman-dev/tallyman/desired"
)

// Template is the pods that an object makes. Meta and Spec belong to the object.
type Template struct {
	// Object makes the pods.
	Object desired.Key
	Meta   *metav1.ObjectMeta
	Spec   *corev1.PodSpec
	// Path leads from the object to Spec, e.g. "spec.template.spec".
	Path string
	// Once is set for pods that are made once: bare ones, and those of Jobs. What
	// is filled in is noted in them, so that a change of the rules makes none again.
	Once bool
}

// Finding is one thing to say about an object.
type Finding struct {
	Object   desired.Key
	Severity desired.Severity
	// Code is a stable word, as in desired.Problem.
	Code                 string
	Field, Message, Hint string
}

// Rules are the objects of a revision that decide about others. Immutable.
type Rules struct {
	limits     map[string][]*desired.Object
	accounts   map[desired.Key]*corev1.ServiceAccount
	known      map[desired.Key]bool
	priorities priorities
	runtimes   map[string]*nodev1.RuntimeClass
	security   security
}

// NewRules collects the rules of a revision. known holds every key that is
// written, also of objects that could not be decoded: their own problem is
// reported, so nothing refers to them in vain. The objects must have distinct keys.
func NewRules(objects []*desired.Object, known map[desired.Key]bool, settings desired.Settings) (*Rules, []Finding) {
	r := &Rules{
		limits:   map[string][]*desired.Object{},
		accounts: map[desired.Key]*corev1.ServiceAccount{},
		known:    known,
		runtimes: map[string]*nodev1.RuntimeClass{},
	}
	for _, o := range objects {
		switch v := o.Value.(type) {
		case *corev1.LimitRange:
			r.limits[o.Key.Namespace] = append(r.limits[o.Key.Namespace], o)
		case *corev1.ServiceAccount:
			r.accounts[o.Key] = v
		case *nodev1.RuntimeClass:
			r.runtimes[o.Key.Name] = v
		}
	}
	for _, limits := range r.limits {
		slices.SortFunc(limits, func(a, b *desired.Object) int { return a.Key.Compare(b.Key) })
	}
	var classes, labels []Finding
	r.priorities, classes = newPriorities(objects)
	r.security, labels = newSecurity(objects, settings)
	return r, append(classes, labels...)
}

// Changes reports whether Complete would change or refuse pods of this
// specification. It is cheap, and never says no wrongly.
func (r *Rules) Changes(t Template) bool {
	namespace, spec := t.Object.Namespace, t.Spec
	account := r.account(namespace, spec)
	_, claimed := t.Meta.Annotations[desired.FilledAnnotation]
	return claimed || len(r.limits[namespace]) > 0 || r.priorities.concern(spec) || spec.RuntimeClassName != nil || spec.Overhead != nil ||
		account != nil && len(account.ImagePullSecrets) > 0 && len(spec.ImagePullSecrets) == 0 || r.missingAccount(namespace, spec)
}

// Complete fills in what admission fills in, in Kubernetes' order, and says what
// it refuses; limited reports that a LimitRange gave the containers something.
// It changes the template, which must not be shared.
func (r *Rules) Complete(t Template) (findings []Finding, limited bool) {
	c := completion{rules: r, Template: t}
	delete(t.Meta.Annotations, desired.FilledAnnotation)
	limited = c.defaultResources()
	c.useAccount()
	c.setPriority()
	c.useRuntime()
	if t.Once && len(c.filled) > 0 {
		c.annotate(desired.FilledAnnotation, strings.Join(c.filled, " "))
	}
	return c.findings, limited
}

// Judge says what completed pods break.
func (r *Rules) Judge(t Template) []Finding {
	c := completion{rules: r, Template: t}
	c.checkLimits()
	c.checkSecurity()
	return c.findings
}

// completion is the work on one template.
type completion struct {
	rules *Rules
	Template
	findings []Finding
	// filled is what was empty and is no longer, as desired.FilledAnnotation has it.
	filled []string
}

func (c *completion) annotate(name, value string) {
	if c.Meta.Annotations == nil {
		c.Meta.Annotations = map[string]string{}
	}
	c.Meta.Annotations[name] = value
}

func (c *completion) report(severity desired.Severity, code, field, message, hint string) {
	c.findings = append(c.findings, Finding{Object: c.Object, Severity: severity, Code: code, Field: c.Path + field, Message: message, Hint: hint})
}

func (c *completion) refuse(code, field, message, hint string) {
	c.report(desired.Error, code, "."+field, message, hint)
}

// containerAt is a container and its path below the pod's specification.
type containerAt struct {
	*corev1.Container
	path string
	init bool
}

// containers lists a pod's containers, then its init containers, as Kubernetes'
// plugins walk them.
func containers(spec *corev1.PodSpec) []containerAt {
	out := make([]containerAt, 0, len(spec.Containers)+len(spec.InitContainers))
	for i := range spec.Containers {
		out = append(out, containerAt{&spec.Containers[i], fmt.Sprintf("containers[%d]", i), false})
	}
	for i := range spec.InitContainers {
		out = append(out, containerAt{&spec.InitContainers[i], fmt.Sprintf("initContainers[%d]", i), true})
	}
	return out
}

// sortedNames are the keys of a map of resources, in order.
func sortedNames[K cmp.Ordered, V any](m map[K]V) []K {
	names := make([]K, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
