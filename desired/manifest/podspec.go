package manifest

import (
	corev1 "k8s.io/api/core/v1"
	defaults "k8s.io/kubernetes/pkg/apis/core/v1"
)

// DefaultPodSpec fills in what a pod specification leaves open, as Load does.
// The planner compares templates that an earlier version stored under the
// defaults of this one, so that new defaults roll nothing.
func DefaultPodSpec(spec *corev1.PodSpec) {
	template := corev1.PodTemplate{Template: corev1.PodTemplateSpec{Spec: *spec}}
	defaults.SetObjectDefaults_PodTemplate(&template)
	*spec = template.Template.Spec
}
