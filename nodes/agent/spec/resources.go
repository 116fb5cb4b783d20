package spec

import (
	"maps"
	"slices"
	"strings"

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

// Limits are a container's resources in the kernel's units. A limit that it
// does not set is the pod's.
func Limits(s *corev1.PodSpec, c *corev1.Container) runtime.Resources {
	if s.Resources == nil {
		return limits(c.Resources.Requests, c.Resources.Limits)
	}
	most := maps.Clone(c.Resources.Limits)
	if most == nil {
		most = corev1.ResourceList{}
	}
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		if whole, found := s.Resources.Limits[name]; found && !positive(most, name) {
			most[name] = whole
		}
	}
	return limits(c.Resources.Requests, most)
}

// RestartsToResize reports whether a container's resizePolicy wants it to be
// started anew for a change of its resources.
func RestartsToResize(c *corev1.Container, was, is runtime.Resources) bool {
	memory := was.Memory != is.Memory
	was.Memory = is.Memory
	cpu := was != is
	return slices.ContainsFunc(c.ResizePolicy, func(p corev1.ContainerResizePolicy) bool {
		concerned := p.ResourceName == corev1.ResourceCPU && cpu || p.ResourceName == corev1.ResourceMemory && memory
		return concerned && p.RestartPolicy == corev1.RestartContainer
	})
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

// Extended are the extended resources that a container requests, by name:
// those of a vendor, which no kernel counts.
func Extended(c *corev1.Container) map[string]int64 {
	var wants map[string]int64
	for name, q := range c.Resources.Limits { // requests are the same, by validation
		domain, _, vendor := strings.Cut(string(name), "/")
		if !vendor || domain == "kubernetes.io" || strings.HasSuffix(domain, ".kubernetes.io") || q.IsZero() {
			continue
		}
		if wants == nil {
			wants = map[string]int64{}
		}
		wants[string(name)] = q.Value()
	}
	return wants
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

// MemoryBound is how much memory a pod could use at most, in bytes: its limit,
// or what the node has for pods.
func MemoryBound(s *corev1.PodSpec, allocatable corev1.ResourceList) int64 {
	node := allocatable.Memory().Value()
	if own := PodLimits(s).Memory; own > 0 && (own < node || node <= 0) {
		return own
	}
	return node
}

// NodeShares are those of all pods of a node together, of what pods may request
// of it.
func NodeShares(allocatable corev1.ResourceList) uint64 {
	return shares(allocatable.Cpu().MilliValue())
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

// CgroupParent is the control group that a pod's containers live in. It is
// relative to the hierarchy's root, the same in version 1 and 2. Pods that
// request something share the processor among each other by what they request;
// the others have one group for all, which gets what those leave.
func CgroupParent(p *nodes.Pod) string {
	groups := CgroupParents(p.UID)
	if nodes.QoS(&p.Template.Spec) == corev1.PodQOSBestEffort {
		return groups[1]
	}
	return groups[0]
}

// CgroupParents are the control groups of which a pod has one: the first if it
// requests something, else the second.
func CgroupParents(uid nodes.UID) [2]string {
	leaf := "/pod" + string(uid)
	return [2]string{"/tallyman" + leaf, "/tallyman/besteffort" + leaf}
}

// OOMScore is how readily the kernel ends a container when memory is short.
// capacity is the machine's memory in bytes. What the pod as a whole requests
// beyond its containers is shared out among them; a sidecar is as well off as
// the containers that it serves.
func OOMScore(s *corev1.PodSpec, c *corev1.Container, capacity int64) int {
	if s.PriorityClassName == "system-node-critical" {
		return -997
	}
	switch nodes.QoS(s) {
	case corev1.PodQOSGuaranteed:
		return -997
	case corev1.PodQOSBestEffort:
		return 1000
	}
	if capacity <= 0 {
		return 999
	}
	request := memoryRequest(c)
	if i := slices.IndexFunc(s.InitContainers, func(o corev1.Container) bool { return o.Name == c.Name }); i >= 0 && Sidecar(c) {
		request = max(request, leastRequest(s))
	}
	score := 1000 - 1000*(request+remaining(s))/capacity
	return int(min(max(score, 3), 999))
}

func memoryRequest(c *corev1.Container) int64 {
	request := c.Resources.Requests[corev1.ResourceMemory]
	return request.Value()
}

// leastRequest is the smallest memory request of the containers that are no
// init containers.
func leastRequest(s *corev1.PodSpec) int64 {
	least := memoryRequest(&s.Containers[0])
	for i := range s.Containers {
		least = min(least, memoryRequest(&s.Containers[i]))
	}
	return least
}

// remaining is each container's part of the memory that the pod as a whole
// requests and none of its containers does.
func remaining(s *corev1.PodSpec) int64 {
	if s.Resources == nil {
		return 0
	}
	whole, found := s.Resources.Requests[corev1.ResourceMemory]
	if !found {
		return 0
	}
	single := resourcehelper.AggregateContainerRequests(&corev1.Pod{Spec: *s}, resourcehelper.PodResourcesOptions{})
	used := single[corev1.ResourceMemory]
	count := int64(len(s.Containers))
	for i := range s.InitContainers {
		if Sidecar(&s.InitContainers[i]) {
			count++
		}
	}
	return max(0, whole.Value()-used.Value()) / count
}
