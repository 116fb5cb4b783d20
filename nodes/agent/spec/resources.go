package spec

import (
	corev1 "k8s.io/api/core/v1"
	resourcehelper "k8s.io/component-helpers/resource"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/runtime"
)

const (
	minShares   = 2
	maxShares   = 262144
	quotaPeriod = 100_000 // microseconds
	minQuota    = 1_000   // microseconds
)

// Limits are a container's resources in the kernel's units.
func Limits(c *corev1.Container) runtime.Resources {
	return limits(c.Resources.Requests, c.Resources.Limits)
}

func limits(requests, limits corev1.ResourceList) runtime.Resources {
	var r runtime.Resources
	request, set := requests[corev1.ResourceCPU]
	limit := limits[corev1.ResourceCPU]
	if !set {
		request = limit
	}
	r.CPUShares = shares(request.MilliValue())
	if milli := limit.MilliValue(); milli > 0 {
		r.CPUPeriod = quotaPeriod
		r.CPUQuota = max(milli*quotaPeriod/1000, minQuota)
	}
	memory := limits[corev1.ResourceMemory]
	r.Memory = memory.Value()
	return r
}

func shares(milli int64) uint64 {
	return uint64(min(max(milli*1024/1000, minShares), maxShares))
}

// PodLimits are the resources of the control group around a pod's containers:
// a limit only where every container has one.
func PodLimits(s *corev1.PodSpec) runtime.Resources {
	pod := &corev1.Pod{Spec: *s}
	r := limits(
		resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{}),
		resourcehelper.PodLimits(pod, resourcehelper.PodResourcesOptions{}),
	)
	cpu, memory := limited(s)
	if !cpu {
		r.CPUQuota, r.CPUPeriod = 0, 0
	}
	if !memory {
		r.Memory = 0
	}
	return r
}

// limited reports whether the pod as a whole, or else every container, has a
// limit for cpu and memory.
func limited(s *corev1.PodSpec) (cpu, memory bool) {
	cpu, memory = true, true
	for _, list := range [][]corev1.Container{s.InitContainers, s.Containers} {
		for i := range list {
			cpu = cpu && positive(list[i].Resources.Limits, corev1.ResourceCPU)
			memory = memory && positive(list[i].Resources.Limits, corev1.ResourceMemory)
		}
	}
	if s.Resources != nil {
		cpu = cpu || positive(s.Resources.Limits, corev1.ResourceCPU)
		memory = memory || positive(s.Resources.Limits, corev1.ResourceMemory)
	}
	return cpu, memory
}

func positive(list corev1.ResourceList, name corev1.ResourceName) bool {
	q, found := list[name]
	return found && q.Sign() > 0
}

// QoS is a pod's quality-of-service class.
func QoS(s *corev1.PodSpec) corev1.PodQOSClass {
	any, guaranteed := false, true
	consider := func(r *corev1.ResourceRequirements) {
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			limit, request := r.Limits[name], r.Requests[name]
			any = any || limit.Sign() > 0 || request.Sign() > 0
			// A request that is left out is defaulted to the limit.
			equal := request.IsZero() || request.Cmp(limit) == 0
			guaranteed = guaranteed && limit.Sign() > 0 && equal
		}
	}
	if s.Resources != nil {
		consider(s.Resources)
	} else {
		for i := range s.InitContainers {
			consider(&s.InitContainers[i].Resources)
		}
		for i := range s.Containers {
			consider(&s.Containers[i].Resources)
		}
	}
	switch {
	case !any:
		return corev1.PodQOSBestEffort
	case guaranteed:
		return corev1.PodQOSGuaranteed
	}
	return corev1.PodQOSBurstable
}

// CgroupParent is the control group that a pod's containers live in. It is
// relative to the hierarchy's root, the same in version 1 and 2. Pods that
// request something share the processor among each other by what they request;
// the others have one group for all, which gets what those leave.
func CgroupParent(p *nodes.Pod) string {
	leaf := "/pod" + string(p.UID)
	if QoS(&p.Template.Spec) == corev1.PodQOSBestEffort {
		return "/tallyman/besteffort" + leaf
	}
	return "/tallyman" + leaf
}

// OOMScore is how readily the kernel ends a container when memory is short.
// capacity is the machine's memory in bytes.
func OOMScore(s *corev1.PodSpec, c *corev1.Container, capacity int64) int {
	if s.PriorityClassName == "system-node-critical" {
		return -997
	}
	switch QoS(s) {
	case corev1.PodQOSGuaranteed:
		return -997
	case corev1.PodQOSBestEffort:
		return 1000
	}
	request := c.Resources.Requests[corev1.ResourceMemory]
	if capacity <= 0 {
		return 999
	}
	score := 1000 - 1000*request.Value()/capacity
	return int(min(max(score, 3), 999))
}
