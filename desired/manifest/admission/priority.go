package admission

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	scheduling "k8s.io/kubernetes/pkg/apis/scheduling/v1"

	"github.com/tallyman-dev/tallyman/desired"
)

// priorities are the PriorityClasses of a revision and the two built-in ones.
type priorities struct {
	classes map[string]*schedulingv1.PriorityClass
	// fallback is the class of pods that name none; nil for priority 0.
	fallback *schedulingv1.PriorityClass
}

// newPriorities finds the classes. Of several global defaults the one with the
// lowest value counts, as in Kubernetes, which refuses to make a second.
func newPriorities(objects []*desired.Object) (priorities, []Finding) {
	p := priorities{classes: map[string]*schedulingv1.PriorityClass{}}
	for _, c := range scheduling.SystemPriorityClasses() {
		policy := corev1.PreemptLowerPriority
		c.PreemptionPolicy = &policy
		p.classes[c.Name] = c
	}
	var findings []Finding
	var first *desired.Object
	for _, o := range objects {
		c, ok := o.Value.(*schedulingv1.PriorityClass)
		if !ok {
			continue
		}
		p.classes[c.Name] = c
		if !c.GlobalDefault {
			continue
		}
		if first == nil {
			first, p.fallback = o, c
			continue
		}
		if c.Value < p.fallback.Value {
			p.fallback = c
		}
		findings = append(findings, Finding{
			Object: o.Key, Severity: desired.Error, Code: "conflict", Field: "globalDefault",
			Message: fmt.Sprintf("PriorityClass %s is already marked as default. Only one default can exist", first.Key.Name),
			Hint:    "the other is in " + first.From.String(),
		})
	}
	return p, findings
}

// concern reports whether the classes have anything to say about a pod.
func (p priorities) concern(spec *corev1.PodSpec) bool {
	return p.fallback != nil || spec.PriorityClassName != "" || spec.Priority != nil || spec.PreemptionPolicy != nil
}

// setPriority resolves a pod's class. A pod without one keeps its fields empty,
// which mean priority 0.
func (c *completion) setPriority() {
	classes := c.rules.priorities
	class := classes.fallback
	if name := c.Spec.PriorityClassName; name != "" {
		if class = classes.classes[name]; class == nil {
			c.missingPriority(name)
			return
		}
	}
	var value int32
	policy := corev1.PreemptLowerPriority
	if class != nil {
		value = class.Value
		if class.PreemptionPolicy != nil {
			policy = *class.PreemptionPolicy
		}
	}
	if p := c.Spec.Priority; p != nil && *p != value {
		c.refuse("invalid", "priority",
			fmt.Sprintf("the integer value of priority (%d) must not be provided in pod spec; priority admission controller computed %d from the given PriorityClass name", *p, value),
			"leave priority out and name a PriorityClass in priorityClassName")
		return
	}
	if p := c.Spec.PreemptionPolicy; p != nil && *p != policy {
		c.refuse("invalid", "preemptionPolicy",
			fmt.Sprintf("the string value of PreemptionPolicy (%s) must not be provided in pod spec; priority admission controller computed %s from the given PriorityClass name", *p, policy),
			"leave preemptionPolicy out; it is set in the PriorityClass")
		return
	}
	if class != nil {
		for _, f := range []struct {
			name  string
			empty bool
		}{{"priorityClassName", c.Spec.PriorityClassName == ""}, {"priority", c.Spec.Priority == nil}, {"preemptionPolicy", c.Spec.PreemptionPolicy == nil}} {
			if f.empty {
				c.filled = append(c.filled, f.name)
			}
		}
		c.Spec.PriorityClassName, c.Spec.Priority, c.Spec.PreemptionPolicy = class.Name, &value, &policy
	}
}

func (c *completion) missingPriority(name string) {
	if !c.rules.known[desired.Key{Group: schedulingv1.GroupName, Kind: "PriorityClass", Name: name}] {
		c.refuse("missing-priorityclass", "priorityClassName", fmt.Sprintf("no PriorityClass with name %s was found", name),
			"add the PriorityClass, or leave priorityClassName out")
	}
}
