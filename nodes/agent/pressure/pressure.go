// Package pressure decides what goes when a node runs short of memory or disk,
// and which pods hold more of the disk than they may, by Kubernetes' rules and
// in its words.
//
// Everything here is a function of values: package agent measures and evicts.
package pressure

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/tallyman-dev/tallyman/nodes"
)

// Signal names what is measured.
type Signal string

// The kubelet's signals.
const (
	Memory      Signal = "memory.available"
	NodeFS      Signal = "nodefs.available"
	NodeFSFiles Signal = "nodefs.inodesFree"
	ImageFS     Signal = "imagefs.available"
)

// Reading is how much of something there is, in bytes or files.
type Reading struct {
	Available, Capacity int64
}

// Short is a signal below its threshold.
type Short struct {
	Signal    Signal
	Reading   Reading
	Threshold int64
}

// memoryThreshold is the kubelet's; the others are hundredths of the capacity.
const memoryThreshold = 100 << 20

var shares = map[Signal]int64{NodeFS: 10, NodeFSFiles: 5, ImageFS: 15}

// Shortages are the signals below the kubelet's default hard thresholds, memory
// first. What was not read is not short.
func Shortages(readings map[Signal]Reading) []Short {
	var short []Short
	for _, s := range []Signal{Memory, NodeFS, NodeFSFiles, ImageFS} {
		r, found := readings[s]
		if !found || r.Capacity <= 0 {
			continue
		}
		threshold := int64(memoryThreshold)
		if s != Memory {
			threshold = r.Capacity / 100 * shares[s]
		}
		if r.Available < threshold {
			short = append(short, Short{Signal: s, Reading: r, Threshold: threshold})
		}
	}
	return short
}

// resource that is reclaimed for a signal.
func (s Signal) resource() corev1.ResourceName {
	switch s {
	case Memory:
		return corev1.ResourceMemory
	case NodeFSFiles:
		return "inodes"
	}
	return corev1.ResourceEphemeralStorage
}

// Taint keeps new pods away while a signal is short.
func (s Signal) Taint() corev1.Taint {
	key := corev1.TaintNodeDiskPressure
	if s == Memory {
		key = corev1.TaintNodeMemoryPressure
	}
	return corev1.Taint{Key: key, Effect: corev1.TaintEffectNoSchedule}
}

// Container is what one container uses.
type Container struct {
	Name string
	// Memory is its working set, Disk its writable layer and logs, in bytes.
	Memory, Disk int64
}

// Pod is one pod that may be evicted.
type Pod struct {
	*nodes.Pod
	Containers []Container
	// Volumes are its emptyDir volumes on disk, in bytes.
	Volumes map[string]int64
}

// usage of the resource that is short.
func (p *Pod) usage(s Signal) int64 {
	total := int64(0)
	for _, c := range p.Containers {
		if s == Memory {
			total += c.Memory
		} else {
			total += c.Disk
		}
	}
	if s != Memory {
		for _, v := range p.Volumes {
			total += v
		}
	}
	return total
}

// request of it, 0 when the pod requests none.
func (p *Pod) request(s Signal) int64 {
	total := int64(0)
	for i := range p.Template.Spec.Containers {
		q := p.Template.Spec.Containers[i].Resources.Requests[s.resource()]
		total += q.Value()
	}
	if whole := p.Template.Spec.Resources; whole != nil {
		if q, found := whole.Requests[s.resource()]; found {
			total = q.Value()
		}
	}
	return total
}

func (p *Pod) priority() int32 {
	if p.Template.Spec.Priority != nil {
		return *p.Template.Spec.Priority
	}
	return 0
}

// systemCritical is the priority from which Kubernetes never evicts a pod for
// a shortage.
const systemCritical = 2_000_000_000

// Rank orders pods by who goes first: those that use more than they request,
// then those of lower priority, then those that use most beyond their request.
// Pods that are critical for the system are left out.
func Rank(s Signal, pods []Pod) []Pod {
	ranked := slices.DeleteFunc(slices.Clone(pods), func(p Pod) bool { return p.priority() >= systemCritical })
	slices.SortFunc(ranked, func(a, b Pod) int {
		beyondA, beyondB := a.usage(s)-a.request(s), b.usage(s)-b.request(s)
		return cmp.Or(
			compareBool(beyondB > 0, beyondA > 0),
			cmp.Compare(a.priority(), b.priority()),
			cmp.Compare(beyondB, beyondA),
			strings.Compare(string(a.UID), string(b.UID)),
		)
	})
	return ranked
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// Why is the message of an eviction for a shortage.
func Why(s Short, p *Pod) string {
	var b strings.Builder
	name := s.Signal.resource()
	fmt.Fprintf(&b, "The node was low on resource: %s. ", name)
	fmt.Fprintf(&b, "Threshold quantity: %s, available: %s. ", amount(s.Signal, s.Threshold), amount(s.Signal, s.Reading.Available))
	for _, c := range p.Containers {
		used := c.Disk
		if s.Signal == Memory {
			used = c.Memory
		}
		request := requested(p, c.Name, name)
		if used > request.Value() {
			fmt.Fprintf(&b, "Container %s was using %s, request is %s, has larger consumption of %s. ", c.Name, amount(s.Signal, used), request.String(), name)
		}
	}
	return b.String()
}

func amount(s Signal, n int64) string {
	if s == NodeFSFiles {
		return resource.NewQuantity(n, resource.DecimalSI).String()
	}
	return resource.NewQuantity(n, resource.BinarySI).String()
}

func requested(p *Pod, container string, name corev1.ResourceName) resource.Quantity {
	for _, list := range [][]corev1.Container{p.Template.Spec.InitContainers, p.Template.Spec.Containers} {
		for i := range list {
			if list[i].Name == container {
				return list[i].Resources.Requests[name]
			}
		}
	}
	return resource.Quantity{}
}
