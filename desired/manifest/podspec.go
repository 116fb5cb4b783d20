package manifest

import (
	corev1 "k8s.io/api/core/v1"
	defaults "k8s.io/kubernetes/pkg/apis/core/v1"
)

// DefaultPodSpec fills in what a pod's specification leaves open, as Load does,
// and what Kubernetes defaults in pods alone, not in templates: containers
// request what they are limited to, ports in the host's network are its ports.
// The planner compares templates that an earlier version stored under the
// defaults of this one, so that new defaults roll nothing.
func DefaultPodSpec(spec *corev1.PodSpec) {
	pod := corev1.Pod{Spec: *spec}
	defaults.SetObjectDefaults_Pod(&pod)
	*spec = pod.Spec
}
