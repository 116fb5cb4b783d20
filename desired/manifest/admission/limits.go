package admission

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"

	"github.com/tallyman-dev/tallyman/desired"
)

// defaultResources gives containers the requests and limits of the namespace's
// LimitRanges, as Kubernetes' LimitRanger gives them to new pods. The first
// LimitRange by name that has a default for a resource decides it. The same
// annotation as there says what was set.
func (c *completion) defaultResources() bool {
	rules := c.rules.limits[c.Object.Namespace]
	if len(rules) > 0 {
		// Kubernetes lets pods, but not templates, request what they are limited to.
		for _, k := range containers(c.Spec) {
			c.fillResources(k, "requests", merge(&k.Resources.Requests, k.Resources.Limits))
		}
	}
	var set []string
	for _, o := range rules {
		requests, limits := containerDefaults(o.Value.(*corev1.LimitRange))
		if len(requests)+len(limits) == 0 {
			continue
		}
		for _, k := range containers(c.Spec) {
			kind := "container"
			if k.init {
				kind = "init container"
			}
			if names := c.fillResources(k, "requests", merge(&k.Resources.Requests, requests)); names != "" {
				set = append(set, fmt.Sprintf("%s request for %s %s", names, kind, k.Name))
			}
			if names := c.fillResources(k, "limits", merge(&k.Resources.Limits, limits)); names != "" {
				set = append(set, fmt.Sprintf("%s limit for %s %s", names, kind, k.Name))
			}
		}
	}
	if len(set) == 0 {
		return false
	}
	c.annotate(desired.LimitAnnotation, "LimitRanger plugin set: "+strings.Join(set, "; "))
	return true
}

// LimitNotes says at each LimitRange with defaults whose templates hold them:
// in Kubernetes new pods alone get a changed default, here the template has it,
// so that pods are rolled.
func (r *Rules) LimitNotes(limited []desired.Key) []Finding {
	users := map[string][]string{}
	for _, k := range limited {
		users[k.Namespace] = append(users[k.Namespace], k.Kind+" "+k.Name)
	}
	var findings []Finding
	for _, namespace := range sortedNames(users) {
		for _, o := range r.limits[namespace] {
			if requests, limits := containerDefaults(o.Value.(*corev1.LimitRange)); len(requests)+len(limits) > 0 {
				findings = append(findings, Finding{
					Object: o.Key, Severity: desired.Note, Code: "limit-range", Field: "spec.limits",
					Message: fmt.Sprintf("gives containers of %s their requests or limits", some(users[namespace])),
					Hint:    "the templates hold them, so changing a default rolls the pods, except bare ones and those of Jobs",
				})
			}
		}
	}
	return findings
}

// some names the first few of many.
func some(names []string) string {
	const few = 3
	if len(names) <= few {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:few], ", "), len(names)-few)
}

// containerDefaults are those of all items for containers; a later item wins.
func containerDefaults(l *corev1.LimitRange) (requests, limits corev1.ResourceList) {
	requests, limits = corev1.ResourceList{}, corev1.ResourceList{}
	for _, item := range l.Spec.Limits {
		if item.Type != corev1.LimitTypeContainer {
			continue
		}
		for name, q := range item.DefaultRequest {
			requests[name] = q
		}
		for name, q := range item.Default {
			limits[name] = q
		}
	}
	return requests, limits
}

// fillResources notes which requests or limits of a container were added, and
// gives them by commas.
func (c *completion) fillResources(k containerAt, list string, added []string) string {
	kind := "containers"
	if k.init {
		kind = "initContainers"
	}
	for _, name := range added {
		c.filled = append(c.filled, kind+"/"+k.Name+"/"+list+"/"+name)
	}
	return strings.Join(added, ", ")
}

// merge adds what a list does not name and gives the names added.
func merge(into *corev1.ResourceList, defaults corev1.ResourceList) []string {
	var added []string
	for _, name := range sortedNames(defaults) {
		if _, ok := (*into)[name]; ok {
			continue
		}
		if *into == nil {
			*into = corev1.ResourceList{}
		}
		(*into)[name] = defaults[name].DeepCopy()
		added = append(added, string(name))
	}
	return added
}

// checkLimits holds a pod and its containers to the namespace's LimitRanges.
func (c *completion) checkLimits() {
	for _, o := range c.rules.limits[c.Object.Namespace] {
		for i := range o.Value.(*corev1.LimitRange).Spec.Limits {
			item := &o.Value.(*corev1.LimitRange).Spec.Limits[i]
			switch item.Type {
			case corev1.LimitTypeContainer:
				for _, k := range containers(c.Spec) {
					c.checkItem(o, item, "."+k.path, k.Resources.Requests, k.Resources.Limits)
				}
			case corev1.LimitTypePod:
				pod := &corev1.Pod{Spec: *c.Spec}
				counted := resourcehelper.PodResourcesOptions{ExcludeOverhead: true}
				c.checkItem(o, item, "", resourcehelper.PodRequests(pod, counted), resourcehelper.PodLimits(pod, counted))
			}
		}
	}
}

func (c *completion) checkItem(rule *desired.Object, item *corev1.LimitRangeItem, path string, requests, limits corev1.ResourceList) {
	say := func(name corev1.ResourceName, list, message string) {
		if message == "" {
			return
		}
		field := path
		if path != "" {
			field += fmt.Sprintf(".resources.%s[%s]", list, name)
		}
		c.report(desired.Error, "limit-range", field, message, limitHint(rule))
	}
	for _, name := range sortedNames(item.Min) {
		list, message := belowMin(item.Type, name, item.Min[name], requests, limits)
		say(name, list, message)
	}
	for _, name := range sortedNames(item.Max) {
		list, message := aboveMax(item.Type, name, item.Max[name], requests, limits)
		say(name, list, message)
	}
	for _, name := range sortedNames(item.MaxLimitRequestRatio) {
		list, message := aboveRatio(item.Type, name, item.MaxLimitRequestRatio[name], requests, limits)
		say(name, list, message)
	}
}

func limitHint(rule *desired.Object) string {
	return fmt.Sprintf("LimitRange %s in %s asks for it", rule.Key.Name, rule.From)
}

// CheckClaim holds a claim's request for storage to the namespace's LimitRanges.
// path leads from the object to the claim's spec.
func (r *Rules) CheckClaim(object desired.Key, path string, spec *corev1.PersistentVolumeClaimSpec) []Finding {
	var findings []Finding
	for _, o := range r.limits[object.Namespace] {
		for _, item := range o.Value.(*corev1.LimitRange).Spec.Limits {
			if item.Type != corev1.LimitTypePersistentVolumeClaim {
				continue
			}
			for _, m := range checkStorage(&item, spec.Resources.Requests) {
				findings = append(findings, Finding{
					Object: object, Severity: desired.Error, Code: "limit-range",
					Field: path + ".resources.requests", Message: m, Hint: limitHint(o),
				})
			}
		}
	}
	return findings
}

func checkStorage(item *corev1.LimitRangeItem, requests corev1.ResourceList) []string {
	var messages []string
	for _, name := range sortedNames(item.Min) {
		if _, m := belowMin(item.Type, name, item.Min[name], requests, nil); m != "" {
			messages = append(messages, m)
		}
	}
	for _, name := range sortedNames(item.Max) {
		enforced := item.Max[name]
		request, ok := requests[name]
		switch {
		case !ok:
			messages = append(messages, fmt.Sprintf("maximum %s usage per %s is %s.  No request is specified", name, item.Type, enforced.String()))
		case request.Cmp(enforced) > 0:
			messages = append(messages, fmt.Sprintf("maximum %s usage per %s is %s, but request is %s", name, item.Type, enforced.String(), request.String()))
		}
	}
	return messages
}

// belowMin says which list breaks a minimum, and how; both are empty when none does.
func belowMin(kind corev1.LimitType, name corev1.ResourceName, enforced resource.Quantity, requests, limits corev1.ResourceList) (list, message string) {
	request, asked := requests[name]
	limit, limited := limits[name]
	switch {
	case !asked:
		return "requests", fmt.Sprintf("minimum %s usage per %s is %s.  No request is specified", name, kind, enforced.String())
	case request.Cmp(enforced) < 0:
		return "requests", fmt.Sprintf("minimum %s usage per %s is %s, but request is %s", name, kind, enforced.String(), request.String())
	case limited && limit.Cmp(enforced) < 0:
		return "limits", fmt.Sprintf("minimum %s usage per %s is %s, but limit is %s", name, kind, enforced.String(), limit.String())
	}
	return "", ""
}

// aboveMax says which list breaks a maximum, and how.
func aboveMax(kind corev1.LimitType, name corev1.ResourceName, enforced resource.Quantity, requests, limits corev1.ResourceList) (list, message string) {
	request, asked := requests[name]
	limit, limited := limits[name]
	switch {
	case !limited:
		return "limits", fmt.Sprintf("maximum %s usage per %s is %s.  No limit is specified", name, kind, enforced.String())
	case limit.Cmp(enforced) > 0:
		return "limits", fmt.Sprintf("maximum %s usage per %s is %s, but limit is %s", name, kind, enforced.String(), limit.String())
	case asked && request.Cmp(enforced) > 0:
		return "requests", fmt.Sprintf("maximum %s usage per %s is %s, but request is %s", name, kind, enforced.String(), request.String())
	}
	return "", ""
}

// aboveRatio says which list breaks a bound on limit over request, and how.
func aboveRatio(kind corev1.LimitType, name corev1.ResourceName, enforced resource.Quantity, requests, limits corev1.ResourceList) (list, message string) {
	request, limit := requests[name], limits[name]
	const bound = "%s max limit to request ratio per %s is %s, but "
	switch {
	case request.IsZero():
		return "requests", fmt.Sprintf(bound+"no request is specified or request is 0", name, kind, enforced.String())
	case limit.IsZero():
		return "limits", fmt.Sprintf(bound+"no limit is specified or limit is 0", name, kind, enforced.String())
	}
	if ratio := limit.AsApproximateFloat64() / request.AsApproximateFloat64(); ratio > enforced.AsApproximateFloat64() {
		return "limits", fmt.Sprintf(bound+"provided ratio is %f", name, kind, enforced.String(), ratio)
	}
	return "", ""
}
