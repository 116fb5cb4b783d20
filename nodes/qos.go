package nodes

import corev1 "k8s.io/api/core/v1"

// QoS is a pod's quality-of-service class: by the resources of the pod as a
// whole where it states them, else by those of its containers.
func QoS(s *corev1.PodSpec) corev1.PodQOSClass {
	asks, guaranteed := false, true
	consider := func(r *corev1.ResourceRequirements) {
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			limit, request := r.Limits[name], r.Requests[name]
			asks = asks || limit.Sign() > 0 || request.Sign() > 0
			// A request that is left out is defaulted to the limit.
			equal := request.IsZero() || request.Cmp(limit) == 0
			guaranteed = guaranteed && limit.Sign() > 0 && equal
		}
	}
	if s.Resources != nil && len(s.Resources.Limits)+len(s.Resources.Requests) > 0 {
		consider(s.Resources)
	} else {
		for _, list := range [][]corev1.Container{s.InitContainers, s.Containers} {
			for i := range list {
				consider(&list[i].Resources)
			}
		}
	}
	switch {
	case !asks:
		return corev1.PodQOSBestEffort
	case guaranteed:
		return corev1.PodQOSGuaranteed
	}
	return corev1.PodQOSBurstable
}
