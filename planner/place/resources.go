package place

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	helpers "k8s.io/component-helpers/resource"

	"github.com/tallyman-dev/tallyman/nodes"
)

// Resources is an amount of everything that pods request: cpu in thousandths,
// the rest in units. Immutable.
type Resources struct {
	cpu, memory, storage, pods int64
	// other are extended resources and huge pages.
	other map[corev1.ResourceName]int64
}

// requests adds up a pod's requests as Kubernetes does: containers and
// sidecars together, or the largest init container beside the sidecars started
// before it, plus overhead. A container requests what it is limited to where
// it requests nothing: Kubernetes defaults pods so, but not their templates.
func requests(spec *corev1.PodSpec) Resources {
	whole := *spec
	whole.Containers = requestLimits(spec.Containers)
	whole.InitContainers = requestLimits(spec.InitContainers)
	r := fromList(helpers.PodRequests(&corev1.Pod{Spec: whole}, helpers.PodResourcesOptions{}))
	r.pods = 1
	return r
}

// felt is what the score of room counts with: as Kubernetes has it, a container
// that requests nothing is felt as if it requested a little.
type felt struct{ cpu, memory int64 }

func feltBy(spec *corev1.PodSpec) felt {
	whole := *spec
	whole.Containers = requestLimits(spec.Containers)
	whole.InitContainers = requestLimits(spec.InitContainers)
	r := fromList(helpers.PodRequests(&corev1.Pod{Spec: whole}, helpers.PodResourcesOptions{NonMissingContainerRequests: corev1.ResourceList{
		corev1.ResourceCPU:    *resource.NewMilliQuantity(100, resource.DecimalSI),
		corev1.ResourceMemory: *resource.NewQuantity(200<<20, resource.BinarySI),
	}}))
	return felt{r.cpu, r.memory}
}

func requestLimits(containers []corev1.Container) []corev1.Container {
	out := slices.Clone(containers)
	for i := range out {
		r := &out[i].Resources
		if len(r.Limits) > 0 {
			all := maps.Clone(r.Limits)
			maps.Copy(all, r.Requests)
			r.Requests = all
		}
	}
	return out
}

func fromList(list corev1.ResourceList) Resources {
	var r Resources
	for name, q := range list {
		switch name {
		case corev1.ResourceCPU:
			r.cpu = q.MilliValue()
		case corev1.ResourceMemory:
			r.memory = q.Value()
		case corev1.ResourceEphemeralStorage:
			r.storage = q.Value()
		case corev1.ResourcePods:
			r.pods = q.Value()
		default:
			if r.other == nil {
				r.other = map[corev1.ResourceName]int64{}
			}
			r.other[name] = q.Value()
		}
	}
	return r
}

func (r Resources) plus(o Resources, sign int64) Resources {
	r.cpu += sign * o.cpu
	r.memory += sign * o.memory
	r.storage += sign * o.storage
	r.pods += sign * o.pods
	if len(o.other) == 0 {
		return r
	}
	other := make(map[corev1.ResourceName]int64, len(r.other)+len(o.other))
	maps.Copy(other, r.other)
	for name, v := range o.other {
		other[name] += sign * v
		if other[name] == 0 {
			delete(other, name)
		}
	}
	r.other = other
	return r
}

// holds is lacks without the words.
func (can Resources) holds(used, needs Resources) bool {
	if can.pods > 0 && can.pods-used.pods < needs.pods ||
		needs.cpu > 0 && can.cpu-used.cpu < needs.cpu ||
		needs.memory > 0 && can.memory-used.memory < needs.memory ||
		needs.storage > 0 && can.storage-used.storage < needs.storage {
		return false
	}
	for name, need := range needs.other {
		if need > 0 && need > can.other[name]-used.other[name] {
			return false
		}
	}
	return true
}

// lacks reports the first resource of which can − used does not hold needs.
// What a pod doesn't request it doesn't lack.
func (can Resources) lacks(used, needs Resources) (refusal, bool) {
	plain := []struct {
		name             corev1.ResourceName
		can, used, needs int64
		milli            bool
	}{
		{corev1.ResourceCPU, can.cpu, used.cpu, needs.cpu, true},
		{corev1.ResourceMemory, can.memory, used.memory, needs.memory, false},
		{corev1.ResourceEphemeralStorage, can.storage, used.storage, needs.storage, false},
	}
	// A node that says nothing about its number of pods sets no limit.
	if free := can.pods - used.pods; can.pods > 0 && free < needs.pods {
		return refusal{key: "pods", text: "has no room for another pod", detail: " (limit " + quantity(can.pods, false, "") + ")"}, true
	}
	for _, p := range plain {
		if free := p.can - p.used; p.needs > 0 && free < p.needs {
			return short(p.name, p.needs, free, p.milli), true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(needs.other)) {
		if free := can.other[name] - used.other[name]; needs.other[name] > 0 && needs.other[name] > free {
			return short(name, needs.other[name], free, false), true
		}
	}
	return refusal{}, false
}

func short(name corev1.ResourceName, want, free int64, milli bool) refusal {
	free = max(0, free)
	return refusal{
		key:    "lacks " + string(name),
		text:   "lacks " + string(name),
		free:   free,
		detail: " (want " + quantity(want, milli, name) + ", most free " + quantity(free, milli, name) + ")",
	}
}

// quantity writes cpu as 1.5, memory as 1.5Gi where that is exact.
func quantity(v int64, milli bool, name corev1.ResourceName) string {
	_, huge := nodes.HugePageSize(name)
	switch {
	case milli:
		return trim(v, 1000)
	case name == corev1.ResourceMemory || name == corev1.ResourceEphemeralStorage || huge:
		return resource.NewQuantity(v, resource.BinarySI).String()
	default:
		return resource.NewQuantity(v, resource.DecimalSI).String()
	}
}

func trim(v, unit int64) string {
	whole, part := v/unit, v%unit
	if part == 0 {
		return resource.NewQuantity(whole, resource.DecimalSI).String()
	}
	digits := []byte{'.', byte('0' + part/100), byte('0' + part/10%10), byte('0' + part%10)}
	for digits[len(digits)-1] == '0' {
		digits = digits[:len(digits)-1]
	}
	return resource.NewQuantity(whole, resource.DecimalSI).String() + string(digits)
}
