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
	resourcehelper "k8s.io/component-helpers/resource"

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
	// ImageFSFiles are files, as NodeFSFiles are.
	ImageFSFiles Signal = "imagefs.inodesFree"
)

// Reading is how much of something there is, in bytes or files.
type Reading struct {
	Available, Capacity int64
	// Device tells file systems apart; zero for memory.
	Device uint64
}

// Short is a signal below its threshold.
type Short struct {
	Signal    Signal
	Reading   Reading
	Threshold int64
	// Apart: images have a file system of their own, which holds containers'
	// writable layers too, and nothing else of theirs.
	Apart bool
}

// memoryThreshold is the kubelet's; the others are hundredths of the capacity.
const memoryThreshold = 100 << 20

var shares = map[Signal]int64{NodeFS: 10, NodeFSFiles: 5, ImageFS: 15, ImageFSFiles: 5}

// Shortages are the signals below the kubelet's default hard thresholds, memory
// first. What was not read is not short.
func Shortages(readings map[Signal]Reading) []Short {
	var short []Short
	images, read := readings[ImageFS]
	apart := read && images.Device != readings[NodeFS].Device
	for _, s := range []Signal{Memory, NodeFS, NodeFSFiles, ImageFS, ImageFSFiles} {
		r, found := readings[s]
		if !found || r.Capacity <= 0 {
			continue
		}
		threshold := int64(memoryThreshold)
		if s != Memory {
			threshold = r.Capacity / 100 * shares[s]
		}
		if r.Available < threshold {
			short = append(short, Short{Signal: s, Reading: r, Threshold: threshold, Apart: apart})
		}
	}
	return short
}

// resource that is reclaimed for a signal.
func (s Signal) resource() corev1.ResourceName {
	switch s {
	case Memory:
		return corev1.ResourceMemory
	case NodeFSFiles, ImageFSFiles:
		return inodes
	}
	return corev1.ResourceEphemeralStorage
}

// inodes are files, as a resource in the kubelet's messages.
const inodes corev1.ResourceName = "inodes"

// Taint keeps new pods away while a signal is short.
func (s Signal) Taint() corev1.Taint {
	key := corev1.TaintNodeDiskPressure
	if s == Memory {
		key = corev1.TaintNodeMemoryPressure
	}
	return corev1.Taint{Key: key, Effect: corev1.TaintEffectNoSchedule}
}

// Condition of a node that is short, in Kubernetes' words.
func (s Signal) Condition() corev1.NodeConditionType {
	if s == Memory {
		return corev1.NodeMemoryPressure
	}
	return corev1.NodeDiskPressure
}

// Images reports whether there are images where the disk is short.
func (s Short) Images() bool { return !s.Apart || s.Signal.images() }

// Container is what one container uses.
type Container struct {
	Name string
	// Memory is its working set in bytes.
	Memory int64
	// Layer is what it wrote into its root file system, Logs what it said.
	Layer, Logs nodes.DiskUsage
}

// Pod is one pod that may be evicted.
type Pod struct {
	*nodes.Pod
	Containers []Container
	// Volumes are its emptyDir volumes on disk.
	Volumes map[string]nodes.DiskUsage
}

// images tells the signals of the file system that images have.
func (s Signal) images() bool { return s == ImageFS || s == ImageFSFiles }

// counts is what of a file system's use a signal is about.
func (s Signal) counts(d nodes.DiskUsage) int64 {
	if s.resource() == inodes {
		return d.Files
	}
	return d.Bytes
}

// usage of what is short.
func (c *Container) usage(s Short) int64 {
	used := c.Logs
	switch {
	case s.Signal == Memory:
		return c.Memory
	case !s.Apart:
		used.Add(c.Layer)
	case s.Signal.images():
		used = c.Layer
	}
	return s.Signal.counts(used)
}

// usage of what is short.
func (p *Pod) usage(s Short) int64 {
	total := int64(0)
	for i := range p.Containers {
		total += p.Containers[i].usage(s)
	}
	if s.Signal == Memory || s.Apart && s.Signal.images() {
		return total
	}
	for _, v := range p.Volumes {
		total += s.Signal.counts(v)
	}
	return total
}

// request of it, as the kubelet reckons: 0 when the pod requests none.
func (p *Pod) request(s Signal) int64 {
	pod := &corev1.Pod{Spec: p.Template.Spec}
	total := resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{
		SkipContainerLevelResources: resourcehelper.IsPodLevelResourcesSet(pod), ExcludeOverhead: true,
	})[s.resource()]
	if overhead, found := p.Template.Spec.Overhead[s.resource()]; found && !total.IsZero() {
		total.Add(overhead)
	}
	return total.Value()
}

func priority(s *corev1.PodSpec) int32 {
	if s.Priority != nil {
		return *s.Priority
	}
	return 0
}

// systemCritical is the priority from which Kubernetes never evicts a pod for
// a shortage.
const systemCritical = 2_000_000_000

// Critical reports whether pods stay whatever is short.
func Critical(s *corev1.PodSpec) bool { return priority(s) >= systemCritical }

// Rank orders pods by who goes first: those that use more than they request,
// then those of lower priority, then those that use most beyond their request.
// Pods that are critical for the system are left out.
func Rank(s Short, pods []Pod) []Pod {
	ranked := slices.DeleteFunc(slices.Clone(pods), func(p Pod) bool { return Critical(&p.Template.Spec) })
	slices.SortFunc(ranked, func(a, b Pod) int {
		beyondA, beyondB := a.usage(s)-a.request(s.Signal), b.usage(s)-b.request(s.Signal)
		return cmp.Or(
			compareBool(beyondB > 0, beyondA > 0),
			cmp.Compare(priority(&a.Template.Spec), priority(&b.Template.Spec)),
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
	if name == inodes {
		return b.String() // which nobody requests
	}
	for i := range p.Containers {
		c := &p.Containers[i]
		used, request := c.usage(Short{Signal: s.Signal}), requested(p, c.Name, name)
		if used > request.Value() {
			fmt.Fprintf(&b, "Container %s was using %s, request is %s, has larger consumption of %s. ", c.Name, amount(s.Signal, used), request.String(), name)
		}
	}
	return b.String()
}

func amount(s Signal, n int64) string {
	if s.resource() == inodes {
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
