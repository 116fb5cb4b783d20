package admission

import (
	corev1 "k8s.io/api/core/v1"
	resourcehelper "k8s.io/component-helpers/resource"
	"k8s.io/kubernetes/pkg/apis/core/v1/helper"
)

// part is what an object uses in one respect: as an object, through its pods,
// or through its claims.
type part struct {
	usage corev1.ResourceList
	// spec is that of the pods, nil for other parts.
	spec    *corev1.PodSpec
	passing bool
	// field of the object that asks for it.
	field string
}

const storageClassSuffix = ".storageclass.storage.k8s.io/"

// countable are the kinds that quotas also count by a plain name.
var countable = map[string]bool{
	"services": true, "configmaps": true, "secrets": true, "replicationcontrollers": true, "resourcequotas": true,
}

func (u Use) parts() []part {
	var parts []part
	if u.Resource != "pods" && u.Resource != "persistentvolumeclaims" {
		parts = append(parts, part{usage: u.objectUsage(), field: "kind"})
	}
	if u.Pods != nil && u.Replicas > 0 {
		parts = append(parts, part{usage: times(podUsage(u.Pods.Spec), u.Replicas), spec: u.Pods.Spec, passing: u.Passing, field: u.Pods.Path + ".containers"})
	}
	for _, c := range u.Claims {
		parts = append(parts, part{usage: times(c.usage(), c.Count), passing: u.Passing, field: c.Path + ".resources.requests"})
	}
	return parts
}

// objectUsage counts the object itself.
func (u Use) objectUsage() corev1.ResourceList {
	usage := corev1.ResourceList{corev1.ResourceName("count/" + u.Resource): count(1)}
	if countable[u.Resource] {
		usage[corev1.ResourceName(u.Resource)] = count(1)
	}
	if s := u.Service; s != nil {
		usage[corev1.ResourceServicesNodePorts] = count(nodePorts(&s.Spec))
		if s.Spec.Type == corev1.ServiceTypeLoadBalancer {
			usage[corev1.ResourceServicesLoadBalancers] = count(1)
		}
	}
	return usage
}

// nodePorts counts the node ports that a service asks for.
func nodePorts(s *corev1.ServiceSpec) int64 {
	switch {
	case s.Type == corev1.ServiceTypeNodePort,
		s.Type == corev1.ServiceTypeLoadBalancer && (s.AllocateLoadBalancerNodePorts == nil || *s.AllocateLoadBalancerNodePorts):
		return int64(len(s.Ports))
	case s.Type == corev1.ServiceTypeLoadBalancer:
		n := int64(0)
		for _, p := range s.Ports {
			if p.NodePort != 0 {
				n++
			}
		}
		return n
	}
	return 0
}

// podUsage is what one pod of a specification uses.
func podUsage(spec *corev1.PodSpec) corev1.ResourceList {
	pod := &corev1.Pod{Spec: *spec.DeepCopy()}
	for _, k := range containers(&pod.Spec) {
		merge(&k.Resources.Requests, k.Resources.Limits)
	}
	usage := compute(resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{}), resourcehelper.PodLimits(pod, resourcehelper.PodResourcesOptions{}))
	usage["count/pods"] = count(1)
	usage[corev1.ResourcePods] = count(1)
	return usage
}

// compute names requests and limits as quotas do.
func compute(requests, limits corev1.ResourceList) corev1.ResourceList {
	usage := corev1.ResourceList{}
	for name, amount := range requests {
		switch {
		case name == corev1.ResourceCPU || name == corev1.ResourceMemory || name == corev1.ResourceEphemeralStorage || helper.IsHugePageResourceName(name):
			usage[name] = amount
			usage[corev1.DefaultResourceRequestsPrefix+name] = amount
		case helper.IsExtendedResourceName(name):
			usage[corev1.DefaultResourceRequestsPrefix+name] = amount
		}
	}
	for name, amount := range limits {
		if name == corev1.ResourceCPU || name == corev1.ResourceMemory || name == corev1.ResourceEphemeralStorage {
			usage["limits."+name] = amount
		}
	}
	return usage
}

// usage of one such claim.
func (c Claim) usage() corev1.ResourceList {
	usage := corev1.ResourceList{corev1.ResourcePersistentVolumeClaims: count(1), "count/persistentvolumeclaims": count(1)}
	storage, asked := c.Spec.Resources.Requests[corev1.ResourceStorage]
	if asked {
		storage = storage.DeepCopy()
		storage.RoundUp(0) // storage is counted in whole bytes
		usage[corev1.ResourceRequestsStorage] = storage
	}
	if c.Class != "" {
		usage[corev1.ResourceName(c.Class+storageClassSuffix)+corev1.ResourcePersistentVolumeClaims] = count(1)
		if asked {
			usage[corev1.ResourceName(c.Class+storageClassSuffix)+corev1.ResourceRequestsStorage] = storage
		}
	}
	return usage
}
