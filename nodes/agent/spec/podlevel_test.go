package spec

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/tallyman-dev/tallyman/nodes"
	"github.com/tallyman-dev/tallyman/nodes/runtime"
)

// TestPodLevelResources: containers without a limit have the pod's, the group
// around them too, and what the pod requests beyond them protects each.
func TestPodLevelResources(t *testing.T) {
	whole := resources("1/1Gi", "2/2Gi")
	s := corev1.PodSpec{Resources: &whole, Containers: []corev1.Container{
		{Name: "a", Resources: resources("", "500m/256Mi")}, {Name: "b", Resources: resources("100m/512Mi", "")},
	}}
	s.Containers[0].Resources.Requests = s.Containers[0].Resources.Limits
	if got := nodes.QoS(&s); got != corev1.PodQOSBurstable {
		t.Errorf("class %s", got)
	}
	want := []runtime.Resources{
		{CPUShares: 512, CPUQuota: 50_000, CPUPeriod: 100_000, Memory: 256 << 20},
		{CPUShares: 102, CPUQuota: 200_000, CPUPeriod: 100_000, Memory: 2 << 30},
	}
	got := []runtime.Resources{Limits(&s, &s.Containers[0]), Limits(&s, &s.Containers[1])}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(runtime.Resources{CPUShares: 1024, CPUQuota: 200_000, CPUPeriod: 100_000, Memory: 2 << 30}, PodLimits(&s)); diff != "" {
		t.Error(diff)
	}
	// 1 GiB less 768 MiB leaves 128 MiB for each of two containers.
	for i, score := range []int{1000 - 1000*(256+128)/8192, 1000 - 1000*(512+128)/8192} {
		if got := OOMScore(&s, &s.Containers[i], 8<<30); got != score {
			t.Errorf("container %d: oom score %d, want %d", i, got, score)
		}
	}
}

func TestOverheadWidensTheGroupOfThePod(t *testing.T) {
	s := corev1.PodSpec{
		Overhead:   corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("250m"), corev1.ResourceMemory: resource.MustParse("64Mi")},
		Containers: []corev1.Container{{Name: "a", Resources: resources("500m/64Mi", "1/64Mi")}},
	}
	want := runtime.Resources{CPUShares: 768, CPUQuota: 125_000, CPUPeriod: 100_000, Memory: 128 << 20}
	if diff := cmp.Diff(want, PodLimits(&s)); diff != "" {
		t.Error(diff)
	}
	if got := Limits(&s, &s.Containers[0]); got.Memory != 64<<20 {
		t.Errorf("the container has %+v", got)
	}
}

func TestSidecarIsAsSafeAsWhatItServes(t *testing.T) {
	s := corev1.PodSpec{
		InitContainers: []corev1.Container{{Name: "side", RestartPolicy: new(corev1.ContainerRestartPolicyAlways), Resources: resources("10m/64Mi", "")}},
		Containers:     []corev1.Container{{Name: "a", Resources: resources("10m/2Gi", "")}, {Name: "b", Resources: resources("10m/4Gi", "")}},
	}
	if side, least := OOMScore(&s, &s.InitContainers[0], 8<<30), OOMScore(&s, &s.Containers[0], 8<<30); side != least {
		t.Errorf("the sidecar scores %d, the least protected container %d", side, least)
	}
}

func TestMemoryBound(t *testing.T) {
	node := corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("1Gi")}
	for limit, want := range map[string]int64{"": 1 << 30, "1/256Mi": 256 << 20, "1/4Gi": 1 << 30} {
		s := corev1.PodSpec{Containers: []corev1.Container{{Name: "a", Resources: resources("", limit)}}}
		if got := MemoryBound(&s, node); got != want {
			t.Errorf("limit %q: %d, want %d", limit, got, want)
		}
	}
}

// TestLimitsThatAContainerIsTold: a program that sizes itself by its limit must
// not take the node's memory for it when its pod has less.
func TestLimitsThatAContainerIsTold(t *testing.T) {
	whole := resources("", "2/2Gi")
	zero := corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("0")}
	p := &nodes.Pod{Template: &nodes.Template{Spec: corev1.PodSpec{Resources: &whole, Containers: []corev1.Container{
		{Name: "own", Resources: resources("", "500m/256Mi")}, {Name: "none"}, {Name: "zero", Resources: corev1.ResourceRequirements{Limits: zero}},
	}}}}
	c := Context{Pod: p, Allocatable: corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("8"), corev1.ResourceMemory: resource.MustParse("64Gi"),
		corev1.ResourceEphemeralStorage: resource.MustParse("1Ti"), "hugepages-2Mi": resource.MustParse("1Gi"),
	}}
	for _, test := range []struct{ container, resource, want string }{
		{"own", "limits.memory", "268435456"},
		{"none", "limits.memory", "2147483648"},
		{"zero", "limits.memory", "2147483648"},
		{"none", "limits.cpu", "2"},
		{"none", "limits.ephemeral-storage", "1099511627776"},
		{"none", "limits.hugepages-2Mi", "0"},
		{"none", "requests.memory", "0"},
	} {
		got, err := c.Resource(&corev1.ResourceFieldSelector{ContainerName: test.container, Resource: test.resource}, nil)
		if err != nil || got != test.want {
			t.Errorf("%s of container %s is %s (%v), want %s", test.resource, test.container, got, err, test.want)
		}
	}
	p.Template.Spec.Resources = nil
	if got, err := c.Resource(&corev1.ResourceFieldSelector{ContainerName: "none", Resource: "limits.memory"}, nil); err != nil || got != "68719476736" {
		t.Errorf("without any limit: %s, %v", got, err)
	}
}
