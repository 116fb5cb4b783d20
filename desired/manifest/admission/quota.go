package admission

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/labels"
	resourcehelper "k8s.io/component-helpers/resource"
	"k8s.io/kubernetes/pkg/apis/core/v1/helper"
	"k8s.io/kubernetes/pkg/apis/core/v1/helper/qos"

	"github.com/tallyman-dev/tallyman/desired"
)

// Use is what one object asks of its namespace's quotas.
type Use struct {
	Object desired.Key
	// Resource names the object's kind as quotas do: "deployments.apps",
	// "configmaps".
	Resource string
	// Pods is the template of the Replicas pods that the object makes; nil for none.
	Pods     *Template
	Replicas int64
	// Passing pods end by themselves: they count on top of those that stay, but
	// not on top of one another.
	Passing bool
	// Claims are made by the object or by its pods.
	Claims []Claim
	// Service is the object itself, if it is one.
	Service *corev1.Service
}

// Claim is a number of equal claims.
type Claim struct {
	Count int64
	// Path leads from the object to Spec.
	Path string
	Spec *corev1.PersistentVolumeClaimSpec
	// Class is the name of the claim's StorageClass; empty for none.
	Class string
}

// quota is one ResourceQuota with what the objects looked at so far use of it.
type quota struct {
	*desired.Object
	spec *corev1.ResourceQuotaSpec
	used corev1.ResourceList
}

// CheckQuotas adds up what objects ask for and reports each that a quota of its
// namespace has no room for, in Kubernetes' words. Objects are looked at in the
// order of their keys; one that is refused uses nothing. Pods of a rolling
// update's surge are not counted.
func CheckQuotas(objects []*desired.Object, uses []Use) []Finding {
	quotas := map[string][]*quota{}
	for _, o := range objects {
		if v, ok := o.Value.(*corev1.ResourceQuota); ok {
			quotas[o.Key.Namespace] = append(quotas[o.Key.Namespace], &quota{Object: o, spec: &v.Spec, used: corev1.ResourceList{}})
		}
	}
	if len(quotas) == 0 {
		return nil
	}
	uses = slices.DeleteFunc(slices.Clone(uses), func(u Use) bool { return quotas[u.Object.Namespace] == nil })
	slices.SortFunc(uses, func(a, b Use) int { return cmp.Or(last(a.Passing)-last(b.Passing), a.Object.Compare(b.Object)) })
	var findings []Finding
	for _, u := range uses {
		for _, q := range quotas[u.Object.Namespace] {
			findings = append(findings, q.admit(u)...)
		}
	}
	return findings
}

func last(passing bool) int {
	if passing {
		return 1
	}
	return 0
}

// admit charges one object, or says why there is no room for it.
func (q *quota) admit(u Use) []Finding {
	findings := q.constrain(u)
	for _, part := range u.parts() {
		requested := q.mask(part.usage)
		if !q.inScope(part) || len(requested) == 0 {
			continue
		}
		exceeded := q.exceeded(requested)
		if len(exceeded) > 0 {
			findings = append(findings, q.refuse(u, part, exceeded, requested))
			continue
		}
		if !part.passing {
			add(q.used, requested)
		}
	}
	return findings
}

func (q *quota) refuse(u Use, part part, exceeded []corev1.ResourceName, requested corev1.ResourceList) Finding {
	message := fmt.Sprintf("exceeded quota: %s, requested: %s, used: %s, limited: %s",
		q.Key.Name, pretty(requested, exceeded), pretty(q.used, exceeded), pretty(q.spec.Hard, exceeded))
	return Finding{Object: u.Object, Severity: desired.Error, Code: "quota", Field: part.field, Message: message, Hint: "the quota is in " + q.From.String()}
}

// constrain wants every container to say what a quota on cpu or memory counts.
func (q *quota) constrain(u Use) []Finding {
	if u.Pods == nil || u.Replicas == 0 || !q.inScope(part{spec: u.Pods.Spec}) || resourcehelper.IsPodLevelResourcesSet(&corev1.Pod{Spec: *u.Pods.Spec}) {
		return nil
	}
	var missing []string
	for _, name := range sortedNames(q.spec.Hard) {
		if !mustBeSpecified(name) {
			continue
		}
		var without []string
		for _, k := range containers(u.Pods.Spec) {
			if _, ok := compute(requestsOf(k), k.Resources.Limits)[name]; !ok {
				without = append(without, k.Name)
			}
		}
		if len(without) > 0 {
			slices.Sort(without)
			missing = append(missing, fmt.Sprintf("%s for: %s", name, strings.Join(slices.Compact(without), ",")))
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return []Finding{{
		Object: u.Object, Severity: desired.Error, Code: "quota", Field: u.Pods.Path + ".containers",
		Message: fmt.Sprintf("failed quota: %s: must specify %s", q.Key.Name, strings.Join(missing, "; ")),
		Hint:    "set them on the containers, or give defaults with a LimitRange; the quota is in " + q.From.String(),
	}}
}

// mustBeSpecified names the resources that each container has to set where a
// quota bounds them; of later ones Kubernetes does not ask it.
func mustBeSpecified(name corev1.ResourceName) bool {
	switch name {
	case corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceRequestsCPU, corev1.ResourceRequestsMemory, corev1.ResourceLimitsCPU, corev1.ResourceLimitsMemory:
		return true
	}
	return false
}

// requestsOf are a container's requests with its limits where it has none.
func requestsOf(k containerAt) corev1.ResourceList {
	requests := k.Resources.Requests.DeepCopy()
	merge(&requests, k.Resources.Limits)
	return requests
}

// mask leaves of a usage what the quota bounds and is not zero.
func (q *quota) mask(usage corev1.ResourceList) corev1.ResourceList {
	out := corev1.ResourceList{}
	for name, amount := range usage {
		if _, bound := q.spec.Hard[name]; bound && !amount.IsZero() {
			out[name] = amount
		}
	}
	return out
}

// exceeded are the resources of which more would be used than there is, sorted.
func (q *quota) exceeded(requested corev1.ResourceList) []corev1.ResourceName {
	var names []corev1.ResourceName
	for _, name := range sortedNames(requested) {
		total := q.used[name].DeepCopy()
		total.Add(requested[name])
		if total.Cmp(q.spec.Hard[name]) > 0 {
			names = append(names, name)
		}
	}
	return names
}

// inScope reports whether the quota's scopes, all of them, take something in.
// Only pods have scopes.
func (q *quota) inScope(p part) bool {
	for _, s := range q.scopes() {
		if p.spec == nil || !podInScope(s, p.spec) {
			return false
		}
	}
	return true
}

func (q *quota) scopes() []corev1.ScopedResourceSelectorRequirement {
	var out []corev1.ScopedResourceSelectorRequirement
	for _, s := range q.spec.Scopes {
		out = append(out, corev1.ScopedResourceSelectorRequirement{ScopeName: s, Operator: corev1.ScopeSelectorOpExists})
	}
	if q.spec.ScopeSelector != nil {
		out = append(out, q.spec.ScopeSelector.MatchExpressions...)
	}
	return out
}

func podInScope(s corev1.ScopedResourceSelectorRequirement, spec *corev1.PodSpec) bool {
	switch s.ScopeName {
	case corev1.ResourceQuotaScopeTerminating:
		return spec.ActiveDeadlineSeconds != nil
	case corev1.ResourceQuotaScopeNotTerminating:
		return spec.ActiveDeadlineSeconds == nil
	case corev1.ResourceQuotaScopeBestEffort:
		return qos.ComputePodQOS(&corev1.Pod{Spec: *spec}) == corev1.PodQOSBestEffort
	case corev1.ResourceQuotaScopeNotBestEffort:
		return qos.ComputePodQOS(&corev1.Pod{Spec: *spec}) != corev1.PodQOSBestEffort
	case corev1.ResourceQuotaScopePriorityClass:
		return classInScope(s, spec.PriorityClassName)
	case corev1.ResourceQuotaScopeCrossNamespacePodAffinity:
		return crossesNamespaces(spec.Affinity)
	}
	return false
}

func classInScope(s corev1.ScopedResourceSelectorRequirement, class string) bool {
	if s.Operator == corev1.ScopeSelectorOpExists {
		return class != ""
	}
	selector, err := helper.ScopedResourceSelectorRequirementsAsSelector(s)
	if err != nil {
		return false // reported when the quota was validated
	}
	set := labels.Set{}
	if class != "" {
		set[string(corev1.ResourceQuotaScopePriorityClass)] = class
	}
	return selector.Matches(set)
}

func crossesNamespaces(a *corev1.Affinity) bool {
	if a == nil {
		return false
	}
	var terms []corev1.PodAffinityTerm
	if p := a.PodAffinity; p != nil {
		terms = append(terms, p.RequiredDuringSchedulingIgnoredDuringExecution...)
		terms = append(terms, unweighted(p.PreferredDuringSchedulingIgnoredDuringExecution)...)
	}
	if p := a.PodAntiAffinity; p != nil {
		terms = append(terms, p.RequiredDuringSchedulingIgnoredDuringExecution...)
		terms = append(terms, unweighted(p.PreferredDuringSchedulingIgnoredDuringExecution)...)
	}
	return slices.ContainsFunc(terms, func(t corev1.PodAffinityTerm) bool { return len(t.Namespaces) > 0 || t.NamespaceSelector != nil })
}

func unweighted(terms []corev1.WeightedPodAffinityTerm) []corev1.PodAffinityTerm {
	var out []corev1.PodAffinityTerm
	for _, t := range terms {
		out = append(out, t.PodAffinityTerm)
	}
	return out
}

// pretty prints amounts as Kubernetes does: cpu=1,memory=1Gi.
func pretty(list corev1.ResourceList, names []corev1.ResourceName) string {
	parts := make([]string, 0, len(names))
	for _, name := range names {
		amount := list[name]
		parts = append(parts, fmt.Sprintf("%s=%s", name, amount.String()))
	}
	return strings.Join(parts, ",")
}

func add(into, more corev1.ResourceList) {
	for name, amount := range more {
		sum := into[name].DeepCopy()
		sum.Add(amount)
		into[name] = sum
	}
}

// times is a list taken n times.
func times(list corev1.ResourceList, n int64) corev1.ResourceList {
	out := corev1.ResourceList{}
	for name, amount := range list {
		product := amount.DeepCopy()
		product.Mul(n)
		out[name] = product
	}
	return out
}

func count(n int64) resource.Quantity { return *resource.NewQuantity(n, resource.DecimalSI) }
