package admission

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	"k8s.io/apimachinery/pkg/api/equality"

	"github.com/tallyman-dev/tallyman/desired"
)

// useRuntime gives a pod the overhead, node selector and tolerations of its
// RuntimeClass.
func (c *completion) useRuntime() {
	class := &nodev1.RuntimeClass{}
	if name := c.Spec.RuntimeClassName; name != nil {
		if class = c.rules.runtimes[*name]; class == nil {
			if !c.rules.known[desired.Key{Group: nodev1.GroupName, Kind: "RuntimeClass", Name: *name}] {
				c.refuse("missing-runtimeclass", "runtimeClassName", fmt.Sprintf("pod rejected: RuntimeClass %q not found", *name),
					"add the RuntimeClass, or leave runtimeClassName out")
			}
			return
		}
	}
	c.setOverhead(class)
	if class.Scheduling != nil {
		c.setScheduling(class.Scheduling)
	}
}

func (c *completion) setOverhead(class *nodev1.RuntimeClass) {
	const hint = "leave overhead out; it is set in the RuntimeClass"
	switch {
	case class.Overhead == nil && c.Spec.Overhead != nil:
		c.refuse("invalid", "overhead", "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead", hint)
	case class.Overhead == nil:
	case len(c.Spec.Overhead) > 0 && !equality.Semantic.DeepEqual(c.Spec.Overhead, class.Overhead.PodFixed):
		c.refuse("invalid", "overhead", "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead", hint)
	default:
		if len(c.Spec.Overhead) == 0 {
			c.filled = append(c.filled, "overhead")
		}
		c.Spec.Overhead = class.Overhead.PodFixed.DeepCopy()
	}
}

func (c *completion) setScheduling(s *nodev1.Scheduling) {
	for _, label := range sortedNames(s.NodeSelector) {
		value := s.NodeSelector[label]
		if own, ok := c.Spec.NodeSelector[label]; ok && own != value {
			c.refuse("conflict", fmt.Sprintf("nodeSelector[%s]", label),
				fmt.Sprintf("conflict: runtimeClass.scheduling.nodeSelector[%s] = %s; pod.spec.nodeSelector[%s] = %s", label, value, label, own), "")
			continue
		}
		if c.Spec.NodeSelector == nil {
			c.Spec.NodeSelector = map[string]string{}
		}
		c.Spec.NodeSelector[label] = value
	}
	c.Spec.Tolerations = mergeTolerations(c.Spec.Tolerations, s.Tolerations)
}

// mergeTolerations joins two lists and leaves out what another one covers.
func mergeTolerations(first, second []corev1.Toleration) []corev1.Toleration {
	all := append(append([]corev1.Toleration{}, first...), second...)
	var merged []corev1.Toleration
	for i, t := range all {
		if !covered(t, merged, false) && !covered(t, all[i+1:], true) {
			merged = append(merged, *t.DeepCopy())
		}
	}
	return merged
}

// covered reports whether one of others tolerates all that t does; with
// stricter, equal ones do not count.
func covered(t corev1.Toleration, others []corev1.Toleration, stricter bool) bool {
	for _, o := range others {
		if equality.Semantic.DeepEqual(t, o) {
			if !stricter {
				return true
			}
			continue
		}
		if covers(o, t) {
			return true
		}
	}
	return false
}

func covers(o, t corev1.Toleration) bool {
	exists := o.Operator == corev1.TolerationOpExists
	switch {
	case t.Key != o.Key && (o.Key != "" || !exists),
		t.Effect != o.Effect && o.Effect != "",
		o.Effect == corev1.TaintEffectNoExecute && o.TolerationSeconds != nil && (t.TolerationSeconds == nil || *t.TolerationSeconds > *o.TolerationSeconds):
		return false
	case exists:
		return true
	}
	return (o.Operator == "" || o.Operator == corev1.TolerationOpEqual) && t.Operator == corev1.TolerationOpEqual && t.Value == o.Value
}
