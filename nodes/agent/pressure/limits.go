package pressure

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"
)

// Excess says in Kubernetes' words what of the disk a pod holds beyond a limit
// of its own: an emptyDir, the pod as a whole, or a container; empty when it
// keeps to all.
func Excess(p *Pod) string {
	spec := &p.Template.Spec
	for i := range spec.Volumes {
		v := &spec.Volumes[i]
		if v.EmptyDir == nil || v.EmptyDir.SizeLimit == nil {
			continue
		}
		if limit := v.EmptyDir.SizeLimit; limit.Sign() > 0 && p.Volumes[v.Name].Bytes > limit.Value() {
			return fmt.Sprintf("Usage of EmptyDir volume %q exceeds the limit %q. ", v.Name, limit.String())
		}
	}
	if total, limited := wholeLimit(spec); limited && p.usage(Short{Signal: NodeFS}) > total.Value() {
		return fmt.Sprintf("Pod ephemeral local storage usage exceeds the total limit of containers %s. ", total.String())
	}
	for i := range p.Containers {
		c := &p.Containers[i]
		limit, found := containerLimit(spec, c.Name)
		if found && c.usage(Short{Signal: NodeFS}) > limit.Value() {
			return fmt.Sprintf("Container %s exceeded its local ephemeral storage limit %q. ", c.Name, limit.String())
		}
	}
	return ""
}

// wholeLimit is the sum of the limits that containers have; limited is false
// when none has any.
func wholeLimit(s *corev1.PodSpec) (total resource.Quantity, limited bool) {
	total, limited = resourcehelper.PodLimits(&corev1.Pod{Spec: *s}, resourcehelper.PodResourcesOptions{})[corev1.ResourceEphemeralStorage]
	return total, limited
}

// containerLimit is that of a container that is no init container.
func containerLimit(s *corev1.PodSpec, name string) (resource.Quantity, bool) {
	for i := range s.Containers {
		if s.Containers[i].Name == name {
			q := s.Containers[i].Resources.Limits[corev1.ResourceEphemeralStorage]
			return q, !q.IsZero()
		}
	}
	return resource.Quantity{}, false
}

// Limited reports whether a pod has any limit that Excess looks at, so that
// others need not be measured for it.
func Limited(s *corev1.PodSpec) bool {
	for i := range s.Volumes {
		if e := s.Volumes[i].EmptyDir; e != nil && e.SizeLimit != nil && e.Medium == corev1.StorageMediumDefault {
			return true
		}
	}
	_, limited := wholeLimit(s)
	return limited
}
